"""The old name of `pqs_client`: `from app.client import Client` works in this release, and is gone in the next."""

import warnings

import pqs_client

# Old names, and their names in `pqs_client`.
RENAMED = {
    "BatchResult": "BatchAnswer",
    "DeadLetter": "DeadMessage",
    "EventResult": "Result",
    "Followed": "EmittedEvent",
    "Lookup": "LookupAnswer",
}


def __getattr__(name: str) -> object:
    """A name of `pqs_client`, with a DeprecationWarning that says where to find it."""
    now = RENAMED.get(name, name)
    if now not in pqs_client.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"import {now} from pqs_client, not {name} from app.client", DeprecationWarning, stacklevel=2)
    found: object = getattr(pqs_client, now)
    return found
