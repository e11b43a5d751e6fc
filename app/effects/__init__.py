"""Who carries intents out, and how."""
