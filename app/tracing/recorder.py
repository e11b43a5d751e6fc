"""The recorder of one trace: spans, made from time stamps when a piece of work has ended.

A recorder is there only for sampled work. It is the value of `current` while the work runs; whoever has something to
note asks there, and finds None nearly always.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from math import floor, inf, log
from typing import Protocol, runtime_checkable

from msgspec import Struct

from app.tracing.context import trace_of, traceparent_of

MOST_SPANS = 128  # of one trace in this process; further ones are dropped
Attributes = Mapping[str, str | int | float]
NO_ATTRIBUTES: Attributes = {}
Link = tuple[int, int]  # trace id, span id


class SpanKind(Enum):
    """The kinds of spans, by OpenTelemetry's names."""

    INTERNAL = auto()
    SERVER = auto()
    CLIENT = auto()
    PRODUCER = auto()
    CONSUMER = auto()


class Span(Struct, frozen=True, kw_only=True, gc=False):
    """A span that has ended. `began` and `ended` are by time.perf_counter()."""

    name: str
    kind: SpanKind = SpanKind.INTERNAL
    trace_id: int
    span_id: int
    parent_id: int | None
    is_remote: bool = False  # the parent
    began: float
    ended: float
    attributes: Attributes
    links: Sequence[Link] = ()
    error: str | None = None


@runtime_checkable
class _Keyed(Protocol):
    @property
    def key(self) -> object: ...


class Spans:
    """The spans of a trace in this process, until they are exported."""

    __slots__ = ("_export", "are_exported", "ended")

    def __init__(self, export: Callable[[Sequence[Span]], None]) -> None:
        self._export = export
        self.ended: list[Span] = []
        self.are_exported = False

    def export(self) -> None:
        """Hand them over. What comes later is dropped."""
        self.are_exported = True
        self._export(self.ended)


class Recorder:
    """Notes the spans under one span: that of a request, or of another piece of work.

    All are exported together, when the uppermost span ends.
    """

    __slots__ = ("_contexts", "_is_uppermost", "_spans", "began", "parent_id", "span_id", "trace_id")

    def __init__(self, spans: Spans, trace_id: int, parent_id: int | None, *, is_uppermost: bool = True) -> None:
        """`parent_id` is another process's span, or one of the same `spans`."""
        self.trace_id = trace_id
        self.span_id = _new_id(64)
        self.parent_id = parent_id
        self.began = time.perf_counter()
        self._spans = spans
        self._is_uppermost = is_uppermost
        self._contexts: dict[object, str] | None = None  # by entity

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is noted."""
        return self._spans.are_exported

    @property
    def link(self) -> Link:
        """The span, as others link to it."""
        return self.trace_id, self.span_id

    @property
    def traceparent(self) -> str:
        """The context for what this span causes."""
        return traceparent_of(self.trace_id, self.span_id)

    def traceparent_for(self, key: object) -> str | None:
        """The context for a message about the entity of this key; None if nothing that is sampled caused it."""
        return self.traceparent if self._contexts is None else self._contexts.get(key)

    def child(self) -> "Recorder":
        """A recorder for a span below this one, which is exported with it."""
        return Recorder(self._spans, self.trace_id, self.span_id, is_uppermost=False)

    def note(
        self,
        name: str,
        began: float,
        ended: float,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        links: Sequence[Link] = (),
        error: str | None = None,
    ) -> None:
        """A span below this one has ended."""
        if len(self._spans.ended) < MOST_SPANS and not self.has_ended:
            self._spans.ended.append(
                Span(
                    name=name,
                    kind=kind,
                    trace_id=self.trace_id,
                    span_id=_new_id(64),
                    parent_id=self.span_id,
                    began=began,
                    ended=ended,
                    attributes=attributes,
                    links=links,
                    error=error,
                )
            )

    def statement(self, pool: str, name: str, seconds: float, rows: int | None, failure: str | None) -> None:
        """A piece of work on a connection of `pool` has ended."""
        ended = time.perf_counter()
        attributes: dict[str, str | int | float] = {
            "db.system.name": "postgresql",
            "db.operation.name": name,
            "db.client.connection.pool.name": pool,
        }
        if rows is not None:
            attributes["db.response.returned_rows"] = rows
        self.note(name, ended - seconds, ended, SpanKind.CLIENT, attributes, error=failure)

    def end(
        self,
        name: str,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = NO_ATTRIBUTES,
        *,
        began: float | None = None,
        links: Sequence[Link] = (),
        error: str | None = None,
    ) -> None:
        """The span itself has ended; with the uppermost one, all are exported."""
        if self.has_ended:
            return
        self._spans.ended.append(
            Span(
                name=name,
                kind=kind,
                trace_id=self.trace_id,
                span_id=self.span_id,
                parent_id=self.parent_id,
                is_remote=self._is_uppermost and self.parent_id is not None,
                began=self.began if began is None else began,
                ended=time.perf_counter(),
                attributes=attributes,
                links=links,
                error=error,
            )
        )
        if self._is_uppermost:
            self._spans.export()

    def causes(self, joined: Iterable[tuple[object, "Recorder"]]) -> None:
        """From now on, messages about an entity have the context of the one of these that is about it."""
        self._contexts = {each.key: trace.traceparent for each, trace in joined if isinstance(each, _Keyed)}


current: ContextVar[Recorder | None] = ContextVar("current", default=None)


def recording() -> Recorder | None:
    """The recorder of the work under way; None for work that is not sampled, and for work that has ended."""
    found = current.get()
    return None if found is None or found.has_ended else found


@contextmanager
def recorded(trace: Recorder | None) -> Iterator[None]:
    """Let `trace` be the current recorder meanwhile."""
    token = current.set(trace)
    try:
        yield
    finally:
        current.reset(token)


@contextmanager
def recorded_batch(name: str, joined: Sequence[tuple[object, Recorder, float | None]], size: int) -> Iterator[None]:
    """Record a batch below the first of the work that it joined: each with its recorder, and since when it waited.

    It did not wait where that is None.
    The batch links to all the others, and the wait of each other one links to it.
    """
    began = time.perf_counter()
    first = joined[0][1]
    record = first.child()
    record.causes([(each, trace) for each, trace, _ in joined])
    for _, trace, since in joined:
        if since is not None:
            trace.note("wait", since, began, links=() if trace is first else [record.link])
    error = None
    token = current.set(record)
    try:
        yield
    except BaseException as failed:
        error = type(failed).__name__
        raise
    finally:
        current.reset(token)
        links = [trace.link for _, trace, _ in joined if trace is not first]
        attributes = {"pqs.batch.size": size, "pqs.batch.sampled": len(joined)}
        record.end(f"batch {name}", attributes=attributes, links=links, error=error)


class Tracer:
    """Decides what is sampled. `export` takes the spans of a piece of work."""

    def __init__(
        self,
        export: Callable[[Sequence[Span]], None],
        *,
        ratio: float,
        limit: int,
        draw: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ratio` is the share of work that nobody has decided about; `limit` the most traces a second."""
        self._export = export
        self._miss = 1 - ratio
        self._limit = limit
        self._draw = draw
        self._clock = clock
        self._pass_over = self._gap()
        self._second = 0
        self._begun = 0  # in this second

    def begin(self, traceparent: bytes | None = None) -> Recorder | None:
        """A recorder for work that begins now, below the caller's span if there is one; None for most work."""
        if traceparent is None:
            if self._pass_over > 0:
                self._pass_over -= 1
                return None
            self._pass_over = self._gap()
            return self._recorder(_new_id(128), None)
        asked = trace_of(traceparent)
        if asked is None:
            return self.begin()
        trace_id, span_id, is_sampled = asked
        return self._recorder(int(trace_id, 16), int(span_id, 16)) if is_sampled else None

    def _gap(self) -> float:
        """How much work is passed over until the next one is sampled: drawn once for all of it."""
        if not 0 < self._miss < 1:
            return inf if self._miss >= 1 else 0.0
        return floor(log(1 - self._draw()) / log(self._miss))

    def _recorder(self, trace_id: int, parent_id: int | None) -> Recorder | None:
        second = int(self._clock())
        if second != self._second:
            self._second, self._begun = second, 0
        if self._begun >= self._limit or not trace_id or parent_id == 0:
            return None
        self._begun += 1
        return Recorder(Spans(self._export), trace_id, parent_id)


def _new_id(bits: int) -> int:
    """An id of so many bits, never 0."""
    return random.getrandbits(bits) or 1
