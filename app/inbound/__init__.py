"""The inputs of the projector: Kafka topics, read as a member of a consumer group, and streams of NDJSON lines."""
