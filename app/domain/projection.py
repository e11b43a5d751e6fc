"""A projection as a value: its row, its events and their rules, and what the store has to know of its columns.

`REGISTRATION` is the projection that the service ships. `docs/decisions/0015-projection.md` has the reasons.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any, Generic

from msgspec import Struct

from app.domain.decider import Deadline, Decision, decide, expire
from app.domain.events import FACT_CLASSES, Deregistered, EventBase, Forgotten, Introspected, RegistrationAcked
from app.domain.registration import Ignored, Registration, Timing, evolve
from app.domain.row_type import R
from app.domain.states import RegistrationState


class PartialChange(Struct, frozen=True):
    """A kind of change that is frequent: the columns that it leaves alone, and the columns that are null after it.

    The store does not send either of them to the database when all rows of a batch change in this way.
    """

    unchanged: tuple[str, ...]
    cleared: tuple[str, ...] = ()


class Timeout(Struct, Generic[R], frozen=True):
    """A kind of deadline, and what follows when it passes.

    A row waits for it in `states`, when the column `deadline` is set and the column `emitted_at`, the marker, is not.
    `expire` decides what follows from a row at a time; it allows nothing for a row that does not wait.
    """

    deadline: str
    emitted_at: str
    states: tuple[StrEnum, ...]
    expire: Callable[[R, datetime], Decision[R] | Ignored]


class Projection(Struct, Generic[R], frozen=True):
    """One row for each entity, folded from events.

    `table` is the name of the table, `row` the type whose fields are its columns. `evolve` takes each of `events`.
    `decide` takes each of `triggers`, from which events follow. (Both are told the type of an event at run time
    only, hence `Any`.) `counted_by` is the column whose values are counted: an enum, and the row's state in results.
    `forgotten_at` is the column that is set in tombstones, which are neither counted nor listed; None: rows of this
    projection are not forgotten.
    `unchanged` has the frequent kinds of change, the one that leaves most alone first. `deadlines` has the kinds of
    deadline by name.

    Raises ValueError when two event classes have one type, and when a kind of change leaves more alone than the one
    before it: a batch is written as its largest change, and this must hold for each of its rows.
    """

    name: str
    table: str
    row: type[R]
    events: tuple[type[EventBase], ...]
    evolve: Callable[[R | None, Any, Timing], R | Ignored]
    triggers: tuple[type[EventBase], ...]
    decide: Callable[[R | None, Any, Timing], Decision[R] | Ignored]
    counted_by: str
    unchanged: tuple[PartialChange, ...]
    deadlines: Mapping[str, Timeout[R]]
    forgotten_at: str | None = None

    def __post_init__(self) -> None:
        for smaller, larger in pairwise(self.unchanged):
            if not ({*larger.unchanged} <= {*smaller.unchanged} and {*larger.cleared} <= {*smaller.cleared}):
                raise ValueError(
                    f"the changes of the projection {self.name} are not in order: {larger} after {smaller}"
                )
        types = Counter(str(cls.__struct_config__.tag) for cls in (*self.events, *self.triggers))
        if twice := [type_ for type_, number in types.items() if number > 1]:
            raise ValueError(f"the projection {self.name} has two classes for {', '.join(twice)}")


_STEADY = (
    "node_type",
    "node_version",
    "capabilities",
    "registered_at",
    "forgotten_at",
    "forgotten_permanently",
)
_TRANSITION = PartialChange(unchanged=_STEADY)
_HEARTBEAT = PartialChange(
    unchanged=("current_state", "ack_deadline", "ack_timeout_emitted_at", *_STEADY),
    cleared=("liveness_timeout_emitted_at",),
)

# Where a node's registration stands. A heartbeat is an event: nothing follows from it but the row. A forget is a
# trigger: intents follow from it.
REGISTRATION = Projection(
    name="registration",
    table="registration_projections",
    row=Registration,
    events=tuple(cls for cls in FACT_CLASSES if cls is not Forgotten),
    evolve=evolve,
    triggers=(Introspected, RegistrationAcked, Deregistered, Forgotten),
    decide=decide,
    counted_by="current_state",
    unchanged=(_HEARTBEAT, _TRANSITION),
    deadlines={
        Deadline.ACK: Timeout(
            deadline="ack_deadline",
            emitted_at="ack_timeout_emitted_at",
            states=tuple(state for state in RegistrationState if state.requires_ack()),
            expire=lambda registration, now: expire(registration, Deadline.ACK, now),
        ),
        Deadline.LIVENESS: Timeout(
            deadline="liveness_deadline",
            emitted_at="liveness_timeout_emitted_at",
            states=tuple(state for state in RegistrationState if state.requires_liveness()),
            expire=lambda registration, now: expire(registration, Deadline.LIVENESS, now),
        ),
    },
    forgotten_at="forgotten_at",
)
