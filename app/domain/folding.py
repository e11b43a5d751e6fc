"""Folding: order → evolve or decide → the rows to write. Pure: the same rows and events give the same result."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Generic

from msgspec import Struct, structs

from app.domain.changes import Change
from app.domain.decider import Decision
from app.domain.events import EventBase, Key
from app.domain.order import TrackRule, check_order
from app.domain.positions import BEFORE_FIRST, Comparison, Position, compare, in_order
from app.domain.projection import Projection
from app.domain.registration import Ignored, Timing
from app.domain.results import EmittedEvent, HeldResult, Outcome, Result
from app.domain.row_type import R
from app.domain.rows import moved, record


class Save(Struct, Generic[R], frozen=True, gc=False):
    """A row to write, and the row that was read before it: None when there was none."""

    row: R
    read: R | None


class Fold(Struct, Generic[R], frozen=True):
    """A folded batch: a result for each event, the rows to write, what followed from triggers, what is logged."""

    results: list[Result]
    saves: list[Save[R]]
    decisions: list[Decision[R]] = []
    changes: list[Change] = []


def fold(
    projection: Projection[R],
    rows: Mapping[Key, R],
    events: Sequence[EventBase],
    timing: Timing,
    *,
    by_position: bool,
    log: Callable[[R | None, EventBase, Outcome, str | None, R], Change | None] | None = None,
    follow: TrackRule | None = None,
    log_move: Callable[[R, R, datetime], Sequence[Change]] | None = None,
) -> Fold[R]:
    """Fold a batch onto the rows of its entities: the events of each in the order given, or `by_position`.

    The changes of an entity are in the order of its versions; without `log` there are none. Where `follow` allows it,
    a row moves to the track of an event before it takes the event in; `log_move` makes the changes that say so.
    """
    results: list[Result | None] = [None] * len(events)
    saves: list[Save[R]] = []
    decisions: list[Decision[R]] = []
    changes: list[Change] = []
    places: dict[Key, list[int]] = defaultdict(list)
    for place, event in enumerate(events):
        places[event.key].append(place)
    for key, places_of_entity in places.items():
        read = row = rows.get(key)
        ordered: Iterable[int] = places_of_entity
        if by_position:
            ordered = in_order(places_of_entity, lambda place: events[place].position)
        for place in ordered:
            if follow is not None and row is not None:
                row = _follow(follow, row, events[place], changes, log_move)
            before = row
            row, result = take_in(projection, row, events[place], timing, decisions)
            results[place] = result
            if log is not None and row is not None and row is not before:
                change = log(before, events[place], result.outcome, result.reason, row)
                if change is not None:
                    changes.append(change)
        if row is not None and row is not read:
            saves.append(Save(row, read))
    return Fold([result for result in results if result is not None], saves, decisions, changes)


def _follow(
    follow: TrackRule,
    row: R,
    event: EventBase,
    changes: list[Change],
    log_move: Callable[[R, R, datetime], Sequence[Change]] | None,
) -> R:
    """The row, moved before the first message of the event's partition if it is to follow the event there."""
    if compare(event.position, row.position) is not Comparison.OTHER_TRACK or not follow(row, event):
        return row
    there = moved(row, Position(partition=event.position.partition, offset=BEFORE_FIRST))
    if log_move is not None:
        changes += log_move(row, there, event.occurred_at)
    return there


def take_in(
    projection: Projection[R],
    row: R | None,
    event: EventBase,
    timing: Timing,
    decisions: list[Decision[R]] | None = None,
) -> tuple[R | None, Result]:
    """Fold one event onto one row: the row after it (the same object when it is untouched), and the result.

    What follows from a trigger is added to `decisions`.
    """
    refusal = check_order(row, event)
    if refusal is not None:
        nothing: list[EmittedEvent] | None = [] if isinstance(event, projection.triggers) else None
        return row, _result(projection, event, *refusal, row, nothing)
    followed: list[EmittedEvent] | None = None
    if isinstance(event, projection.triggers):
        followed = []
        decided = projection.decide(row, event, timing)
        if isinstance(decided, Decision):
            if decisions is not None:
                decisions.append(decided)
            followed = [EmittedEvent(each.event_id, each.type) for each in decided.events]
            evolved: R | Ignored = decided.row
        else:
            evolved = decided
    else:
        evolved = projection.evolve(row, event, timing)
    if isinstance(evolved, Ignored):
        recorded = None if row is None else record(row, event)
        return recorded, _result(projection, event, Outcome.IGNORED, evolved.reason, recorded, followed)
    return evolved, _result(projection, event, Outcome.APPLIED, None, evolved, followed)


_WAITS = "the messages of this entity wait behind a dead letter, which has to be retried or skipped first"


def held_result(projection: Projection[R], event: EventBase, row: R | None) -> HeldResult:
    """The result of an event that is not folded, as its entity is held."""
    nothing: list[EmittedEvent] | None = [] if isinstance(event, projection.triggers) else None
    result = _result(projection, event, Outcome.CONFLICT, _WAITS, row, nothing)
    return HeldResult(**structs.asdict(result))


def _result(
    projection: Projection[R],
    event: EventBase,
    outcome: Outcome,
    reason: str | None,
    row: R | None,
    events: list[EmittedEvent] | None,
) -> Result:
    if row is None:
        return Result(event.event_id, outcome, reason, event.entity_id, event.domain, None, None, None, events)
    return Result(
        event.event_id,
        outcome,
        reason,
        event.entity_id,
        event.domain,
        getattr(row, projection.counted_by),
        row.version,
        row.position,
        events,
    )
