"""The one ordered path: the projector, outbox entries, the batching of single requests, and the sweep."""
