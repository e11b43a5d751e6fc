"""Folding: order → evolve or decide → the rows to write. Pure: the same rows and events always give the same."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import assert_never

from msgspec import Struct

from app.domain.decider import Decision, decide
from app.domain.events import Deregistered, Event, Introspected, Key, RegistrationAcked
from app.domain.positions import Comparison, compare, in_order
from app.domain.registration import Ignored, Outcome, Registration, Timing, evolve, record
from app.domain.results import Followed, Result

# The triggers that are no facts: what follows from them is evolved. A heartbeat evolves as it is.
_DECIDED = (Introspected, RegistrationAcked, Deregistered)


class Save(Struct, frozen=True, gc=False):
    """A row to write, and the row that was read before it: None when there was none."""

    registration: Registration
    read: Registration | None


class Fold(Struct, frozen=True):
    """What a batch makes of the rows that were read: a result for each event, the rows to write, what followed."""

    results: list[Result]
    saves: list[Save]
    decisions: list[Decision] = []


def fold(rows: dict[Key, Registration], events: Sequence[Event], timing: Timing, *, by_position: bool) -> Fold:
    """Fold a batch onto the rows of its entities. Pure: the same rows and events always give the same."""
    results: list[Result | None] = [None] * len(events)
    saves: list[Save] = []
    decisions: list[Decision] = []
    places: dict[Key, list[int]] = defaultdict(list)
    for place, event in enumerate(events):
        places[event.key].append(place)
    for key, places_of_entity in places.items():
        read = registration = rows.get(key)
        ordered: Iterable[int] = places_of_entity
        if by_position:
            ordered = in_order(places_of_entity, lambda place: events[place].position)
        for place in ordered:
            registration, results[place] = take_in(registration, events[place], timing, decisions)
        if registration is not None and registration is not read:
            saves.append(Save(registration, read))
    return Fold([result for result in results if result is not None], saves, decisions)


def take_in(
    registration: Registration | None, event: Event, timing: Timing, decisions: list[Decision] | None = None
) -> tuple[Registration | None, Result]:
    """One event onto one row: the row after it (the same object when it is untouched), and the result.

    What follows from a trigger is put at the end of `decisions`.
    """
    refusal = check_order(registration, event)
    if refusal is not None:
        outcome, reason = refusal
        return registration, _result(event, outcome, reason, registration)
    if isinstance(event, _DECIDED):
        decided = decide(registration, event, timing)
        if isinstance(decided, Decision):
            if decisions is not None:
                decisions.append(decided)
            return decided.registration, _result(event, Outcome.APPLIED, None, decided.registration, decided)
        evolved: Registration | Ignored = decided
    else:
        evolved = evolve(registration, event, timing)
    if isinstance(evolved, Registration):
        return evolved, _result(event, Outcome.APPLIED, None, evolved)
    recorded = None if registration is None else record(registration, event)
    return recorded, _result(event, Outcome.IGNORED, evolved.reason, recorded)


def check_order(registration: Registration | None, event: Event) -> tuple[Outcome, str] | None:
    """Why the event's position does not fit its entity's row now, as outcome and reason; None when it does."""
    stands_at = None if registration is None else registration.position
    if registration is not None and stands_at is not None:
        match compare(event.position, stands_at):
            case Comparison.OTHER_TRACK:
                return Outcome.CONFLICT, f"the positions can't be compared: the row stands at {stands_at}"
            case Comparison.SAME if registration.last_applied_event_id == event.event_id:
                return Outcome.DUPLICATE, f"this event is already in: the row stands at {stands_at}"
            case Comparison.SAME:
                claimed_by = registration.last_applied_event_id
                return Outcome.CONFLICT, f"two events claim one position: {stands_at} is event {claimed_by}"
            case Comparison.LOWER:
                return Outcome.STALE, f"the row is further on: it stands at {stands_at}"
            case Comparison.HIGHER:
                pass
            case never:
                assert_never(never)
    previous = event.position.previous
    if previous is not None and (stands_at is None or stands_at.number < previous):
        at = "there is no row yet" if stands_at is None else f"the row stands at {stands_at}"
        return Outcome.EARLY, f"the event at {previous} comes before this one, and {at}: send this one again after it"
    return None


def _result(
    event: Event,
    outcome: Outcome,
    reason: str | None,
    registration: Registration | None,
    decision: Decision | None = None,
) -> Result:
    events: list[Followed] | None = None
    if isinstance(event, _DECIDED):
        events = [Followed(each.event_id, each.type) for each in decision.events] if decision else []
    if registration is None:
        return Result(event.event_id, outcome, reason, event.entity_id, event.domain, None, None, None, events)
    return Result(
        event.event_id,
        outcome,
        reason,
        event.entity_id,
        event.domain,
        registration.current_state,
        registration.version,
        registration.position,
        events,
    )
