"""What drives the projector: the Kafka consumer and its membership in a consumer group."""
