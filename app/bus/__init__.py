"""What leaves the service as messages: envelopes, and the buses that carry them."""
