"""Bytes into values and back: events, CloudEvents, envelopes, messages of Kafka. No I/O."""
