"""Strategies of property tests: logs of events, ways to read them, and JSON of any shape.

A log is made of choices, so that Hypothesis and a seeded `random.Random` generate the same kind of log.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid5

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from app.domain.events import (
    TRIGGER_CLASSES,
    Accepted,
    AckDeadlineData,
    AckReceived,
    AckRequested,
    AckTimedOut,
    Activated,
    ActivatedData,
    Capabilities,
    Data,
    Deregistered,
    Event,
    EventBase,
    Forgotten,
    ForgottenData,
    Heartbeat,
    HeartbeatData,
    Initiated,
    InitiatedData,
    Introspected,
    LivenessExpired,
    NoData,
    Recorded,
    RecordedData,
    Refreshed,
    RegistrationAcked,
    Rejected,
    Trigger,
)
from app.domain.folding import take_in
from app.domain.positions import Position
from app.domain.projection import REGISTRATION, Projection
from app.domain.registration import Registration, Timing
from app.domain.rows import Row
from app.domain.states import SOURCES, RegistrationState
from app.store.registrations import REGISTRATIONS, Store
from app.wire.events import EARLIEST, LATEST, read_event
from tests.leases import LEASE, LEASES, Asked, Lapsed, LeaseState, Noted, NotedData, Released, Renewed
from tests.making import NODE, START, event_json, node

# No example is kept between runs: they are found again by the seed that pytest-randomly prints.
pure = settings(database=None, deadline=None)
# One database serves all examples of a test: each example writes to a domain of its own.
stored = settings(pure, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])

T = TypeVar("T")


class Choose(Protocol):
    """Chooses one of the options, the first being the simplest."""

    def __call__(self, options: Sequence[T], /) -> T: ...


# --- Logs ----------------------------------------------------------------------------------------------------------

_INDIA = timezone(timedelta(hours=5, minutes=30))
TIMES: tuple[datetime, ...] = (
    START,
    *(START + timedelta(seconds=seconds) for seconds in (1, 29.999999, 30, 60, 89.5, 90, 91, 3600, -1, -86400)),
    (START + timedelta(seconds=60)).astimezone(_INDIA),
    EARLIEST,
    LATEST,
)
CAPABILITIES: tuple[Capabilities, ...] = (
    {},
    {"gpu": True},
    {"postgres": True, "tags": ["a", "ü", "\u2028", "😀", ""]},
    {"n": 1.0, "e": 1e22, "tiny": 5e-324, "zero": -0.0, "huge": 1.5e300, "int": 2**64 + 1},
    {"": {"deep": [None, {"er": [[]]}]}},
)
# An event that leads to the state.
_LEADING_TO: dict[RegistrationState, type[Event]] = {
    RegistrationState.PENDING_REGISTRATION: Initiated,
    RegistrationState.ACCEPTED: Accepted,
    RegistrationState.AWAITING_ACK: AckRequested,
    RegistrationState.REJECTED: Rejected,
    RegistrationState.ACK_TIMED_OUT: AckTimedOut,
    RegistrationState.ACK_RECEIVED: AckReceived,
    RegistrationState.ACTIVE: Activated,
    RegistrationState.LIVENESS_EXPIRED: LivenessExpired,
}
# The states in which something follows from a trigger.
_DECIDED_IN: dict[type[Event], tuple[RegistrationState, ...]] = {
    Introspected: (*SOURCES[RegistrationState.PENDING_REGISTRATION], RegistrationState.ACTIVE),
    RegistrationAcked: SOURCES[RegistrationState.ACK_RECEIVED],
    Deregistered: (
        RegistrationState.PENDING_REGISTRATION,
        *SOURCES[RegistrationState.ACK_TIMED_OUT],
        RegistrationState.ACTIVE,
    ),
}
_OFTEN_NONE = (None, None, *TIMES)


class Kind(NamedTuple):
    """A projection, and how to draw events for it."""

    projection: Projection[Any]
    store: Store[Any]
    begins: tuple[type[EventBase], ...]  # the classes of an entity's first event
    whole: type[EventBase]  # the class of an event that has the whole row
    allowed: Callable[[Any], list[type[EventBase]]]  # the classes that a row's state allows
    make_data: Callable[[Choose, type[EventBase]], Data]
    read: Callable[[bytes], EventBase]

    @property
    def classes(self) -> tuple[type[EventBase], ...]:
        """Every event class."""
        return (*self.projection.events, *self.projection.triggers)


def make_log(
    choose: Choose,
    *,
    entities: int,
    length: int,
    linked: bool,
    types: Sequence[type[EventBase]] | None = None,
    kind: Kind | None = None,
) -> list[Any]:
    """A log of this many events in the order of their positions, in which every entity's first begins a registration.

    About half of the events are allowed by the state that they meet; the others are of any of `types`. All entities
    come from one partition, or each has its own sequence. `linked` events name the position before them.
    """
    kind = kind or REGISTRATION_KIND
    types = types or kind.classes
    partition = choose((None, "topic-0"))
    offset = 0
    stands_at: dict[UUID, int] = {}
    rows: dict[UUID, Any] = {}
    log: list[EventBase] = []
    for _ in range(length):
        entity_id = choose([node(number) for number in range(entities)])
        row = rows.get(entity_id)
        step = choose((1, 1, 2, 2**40))
        offset += step
        number = offset if partition is not None else stands_at.get(entity_id, 0) + step
        previous = stands_at.get(entity_id) if linked else None
        if partition is not None:
            position = Position(partition=partition, offset=number, previous=previous)
        else:
            position = Position(sequence=number, previous=previous)
        event = _make_event(choose, _choose_class(choose, row, types, kind), entity_id, position, kind)
        row, _ = take_in(kind.projection, row, event, Timing())
        if row is not None:
            rows[entity_id] = row
        stands_at[entity_id] = number
        log.append(event)
    return log


def _choose_class(choose: Choose, row: Row | None, types: Sequence[type[EventBase]], kind: Kind) -> type[EventBase]:
    if row is None:
        return choose([cls for cls in kind.begins if cls in types])
    allowed = [cls for cls in kind.allowed(row) if cls in types]
    follows = choose((True, False))
    return choose(allowed if allowed and follows else types)


def _allowed(row: Registration) -> list[type[EventBase]]:
    if row.forgotten_at is not None:
        return [Initiated, Introspected, Recorded]
    led = [cls for state, cls in _LEADING_TO.items() if row.current_state in SOURCES[state]]
    decided = [cls for cls, states in _DECIDED_IN.items() if row.current_state in states]
    return [*led, *decided, Forgotten]


def _make_event(
    choose: Choose, cls: type[EventBase], entity_id: UUID, position: Position, kind: Kind | None = None
) -> EventBase:
    make_data = _make_data if kind is None else kind.make_data
    return cls(
        event_id=uuid5(entity_id, f"event {position.number}"),
        entity_id=entity_id,
        position=position,
        occurred_at=choose(TIMES),
        correlation_id=choose((None, node(1), node(2))),
        data=make_data(choose, cls),
    )


def _make_data(choose: Choose, cls: type[EventBase]) -> Data:
    if cls in {Initiated, Refreshed, Introspected}:
        return InitiatedData(
            node_type=choose(("compute", "storage")),
            node_version=choose(("1.0.0", "2.1")),
            capabilities=choose(CAPABILITIES),
        )
    if cls in {Accepted, AckRequested}:
        return AckDeadlineData(ack_deadline=choose(_OFTEN_NONE))
    if cls is Activated:
        return ActivatedData(liveness_deadline=choose(_OFTEN_NONE), capabilities=choose((None, *CAPABILITIES)))
    if cls is Heartbeat:
        return HeartbeatData(heartbeat_at=choose(_OFTEN_NONE), liveness_deadline=choose(_OFTEN_NONE))
    if cls is Recorded:
        return RecordedData(
            current_state=choose(list(RegistrationState)),
            node_type=choose(("compute", "x" * 64)),
            registered_at=choose(TIMES),
            capabilities=choose(CAPABILITIES),
            ack_deadline=choose(_OFTEN_NONE),
            liveness_deadline=choose(_OFTEN_NONE),
            last_heartbeat_at=choose(_OFTEN_NONE),
            ack_timeout_emitted_at=choose(_OFTEN_NONE),
            liveness_timeout_emitted_at=choose(_OFTEN_NONE),
        )
    if cls is Forgotten:
        return ForgottenData(reason=choose((None, "gone")), permanent=choose((False, False, True)))
    return NoData()


REGISTRATION_KIND = Kind(
    REGISTRATION,
    REGISTRATIONS,
    (Initiated, Introspected, Recorded, Forgotten),
    Recorded,
    _allowed,
    _make_data,
    read_event,
)


def _make_lease_data(choose: Choose, cls: type[EventBase]) -> Data:
    if cls is Noted:
        return NotedData(
            lease_state=choose(list(LeaseState)), holder=choose(("me", "you")), ends_at=choose(_OFTEN_NONE)
        )
    return NoData()


_LEASE_EVENT = Noted | Renewed | Released | Lapsed | Asked
LEASE_KIND = Kind(
    LEASE,
    LEASES,
    (Noted,),
    Noted,
    lambda lease: [Renewed, Released, Lapsed, Asked] if lease.lease_state is LeaseState.HELD else [Noted],
    _make_lease_data,
    msgspec.json.Decoder(_LEASE_EVENT).decode,
)
KINDS = {kind.projection.name: kind for kind in (REGISTRATION_KIND, LEASE_KIND)}


E = TypeVar("E", bound=EventBase)


def in_domain(log: Sequence[E], domain: str) -> list[E]:
    """The same log for the entities of another domain."""
    return [replace(event, domain=domain) for event in log]


@st.composite
def logs(
    draw: st.DrawFn,
    *,
    linked: bool = False,
    types: Sequence[type[EventBase]] | None = None,
    max_size: int = 14,
    kind: Kind = REGISTRATION_KIND,
) -> list[Any]:
    """Logs of one to three entities, in the order of their positions."""

    def choose(options: Sequence[T], /) -> T:
        return draw(st.sampled_from(options))

    entities, length = draw(st.integers(1, 3)), draw(st.integers(1, max_size))
    return make_log(choose, entities=entities, length=length, linked=linked, types=types, kind=kind)


def seeded_log(
    random: Random, *, entities: int, length: int, linked: bool, kind: Kind = REGISTRATION_KIND
) -> list[Any]:
    """The log that one seed generates."""

    def choose(options: Sequence[T], /) -> T:
        return random.choice(options)

    return make_log(choose, entities=entities, length=length, linked=linked, kind=kind)


@st.composite
def triggers_and_rows(draw: st.DrawFn) -> tuple[Registration | None, Trigger]:
    """A trigger of any type, and any row that it may meet."""

    def choose(options: Sequence[T], /) -> T:
        return draw(st.sampled_from(options))

    row = None
    if choose((True, True, False)):
        recorded = _make_event(choose, Recorded, NODE, Position(sequence=1))
        row, _ = take_in(REGISTRATION, None, recorded, Timing())
    trigger = _make_event(choose, choose(TRIGGER_CLASSES), NODE, Position(sequence=2))
    assert isinstance(trigger, Trigger)
    return row, trigger


# --- Ways to read a log --------------------------------------------------------------------------------------------


Batches = list[list[Any]]


@st.composite
def reread_logs(
    draw: st.DrawFn, *, readers: int = 1, kind: Kind = REGISTRATION_KIND
) -> tuple[list[Any], list[Batches]]:
    """A log and each reader's reads of it: with rewinds and repeats, never starting beyond its own progress."""
    log = draw(logs(linked=draw(st.booleans()), kind=kind))
    return log, [draw(_readings(log)) for _ in range(readers)]


@st.composite
def _readings(draw: st.DrawFn, log: Sequence[Any]) -> Batches:
    batches: Batches = []
    reached = 0
    while reached < len(log):
        start = draw(st.integers(0, reached))
        last_read = len(batches) > 6
        stop = len(log) if last_read else draw(st.integers(start + 1, len(log)))
        reached = max(reached, stop)
        join = draw(st.booleans())
        if batches and join:
            batches[-1] += log[start:stop]
        else:
            batches.append(list(log[start:stop]))
    return batches


@st.composite
def shuffled_logs(
    draw: st.DrawFn,
    *,
    linked: bool,
    types: Sequence[type[EventBase]] | None = None,
    kind: Kind = REGISTRATION_KIND,
) -> tuple[list[Any], Batches]:
    """A log, and the same events in any order, in batches."""
    log = draw(logs(linked=linked, types=types, kind=kind))
    batches: Batches = [[]]
    for event in draw(st.permutations(log)):
        batches[-1].append(event)
        if draw(st.booleans()):
            batches.append([])
    return log, batches


# --- Bytes that may be an event ------------------------------------------------------------------------------------

# Any code point, halves of surrogate pairs among them; json.dumps writes those as escapes.
_texts = st.text(st.characters(exclude_categories=()), max_size=8)
_scalars = st.none() | st.booleans() | st.integers() | st.sampled_from([2**63, -1, 10**400]) | st.floats() | _texts
json_values: st.SearchStrategy[object] = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4), max_leaves=12
)


@st.composite
def spoilt_events(draw: st.DrawFn) -> bytes:
    """JSON of an event with a few wrong fields, at any level."""
    event = event_json(draw(st.sampled_from(["registration.initiated", "node.heartbeat"])), 1, entity_id=NODE)
    event.setdefault("data", {})
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from([event, event["position"], event["data"]]))
        if not isinstance(place, dict):
            continue
        name = draw(_texts | st.sampled_from(sorted({*event, *place, "capabilities", "previous"})))
        if draw(st.booleans()):
            place[name] = draw(json_values)
        elif name not in {"position", "data"}:
            place.pop(name, None)
    return json.dumps(event).encode()


@st.composite
def damaged_events(draw: st.DrawFn) -> bytes:
    """The bytes of an event with a piece removed, inserted or overwritten."""
    body = draw(spoilt_events())
    start = draw(st.integers(0, len(body)))
    stop = draw(st.integers(start, min(start + 8, len(body))))
    return body[:start] + draw(st.binary(max_size=8) | st.sampled_from([b"NaN", b"\\u0000", b"[[[["])) + body[stop:]


bodies: st.SearchStrategy[bytes] = (
    st.binary() | json_values.map(lambda value: json.dumps(value).encode()) | spoilt_events() | damaged_events()
)
