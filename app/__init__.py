"""Projection Query Service: where each node stands in its registration, kept from events, asked over REST."""
