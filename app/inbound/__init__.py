"""What drives the projector: the Kafka consumer with its membership in a group, and streams of NDJSON lines."""
