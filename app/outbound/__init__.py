"""What leaves after the commit: the relay, the bus, and the handlers of intents."""
