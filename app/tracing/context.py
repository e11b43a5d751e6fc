"""W3C Trace Context: the header `traceparent`, and CloudEvents' extension of this name."""

import re

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SAMPLED = 1  # of the flags
TRACEPARENT = "traceparent"
LENGTH = 55  # bytes of a traceparent of version 00
_AT_END = b'"traceparent":"'
_END = b'"}'


class Trace(tuple[str, str, bool]):
    """Trace id, span id, and whether the caller samples the trace."""

    __slots__ = ()


def trace_of(traceparent: bytes | None) -> Trace | None:
    """What a `traceparent` says; None without one, or for one that is not well-formed."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent else None
    if found is None:
        return None
    return Trace((found[1].decode(), found[2].decode(), bool(int(found[3], 16) & _SAMPLED)))


def traceparent_of(trace_id: int, span_id: int) -> str:
    """The `traceparent` of a sampled span."""
    return f"00-{trace_id:032x}-{span_id:016x}-01"


def traceparent_in(envelope: bytes) -> bytes | None:
    """The `traceparent` of a written envelope, where it is the last field; found without parsing."""
    place = len(envelope) - LENGTH - len(_END)
    if envelope[place - len(_AT_END) : place] != _AT_END:
        return None
    return envelope[place : place + LENGTH]
