"""Bytes into values and back, without I/O: events, CloudEvents, envelopes, messages of Kafka, answers."""
