"""What leaves after the commit: outbox entries, the relay, the bus, and the handlers of intents."""
