"""The one ordered path: the projector, the batching of single requests, and the sweep."""
