"""Order: whether an event fits its entity's row now, by their positions."""

from collections.abc import Callable
from typing import assert_never

from app.domain.events import EventBase
from app.domain.positions import Comparison, Position, compare, topic_of
from app.domain.results import Outcome
from app.domain.rows import Row

# Whether a row may move to the track of an event: from the row and the event.
TrackRule = Callable[[Row, EventBase], bool]


def within(reads: Callable[[str], bool]) -> TrackRule:
    """The rule for topics whose partitions change (PQS_TRACKS=follow); `reads` says which topics it is about.

    A row moves from one partition of these topics to the event's, if the event did not occur before the last one
    that the row recorded.
    """

    def follow(row: Row, event: EventBase) -> bool:
        return event.occurred_at >= row.updated_at and _reads(row.position) and _reads(event.position)

    def _reads(position: Position) -> bool:
        topic = None if position.partition is None else topic_of(position.partition)
        return topic is not None and reads(topic)

    return follow


def check_order(row: Row | None, event: EventBase) -> tuple[Outcome, str] | None:
    """Compare the event's position with its entity's row: outcome and reason when it does not fit, None when it does.

    The cases are the lines of the table in docs/explanation/order.md; the first one that holds decides.
    """
    stands_at = None if row is None else row.position
    if row is not None and stands_at is not None:
        match compare(event.position, stands_at):
            case Comparison.OTHER_TRACK:
                return Outcome.CONFLICT, f"the positions can't be compared: the row stands at {stands_at}"
            case Comparison.SAME if row.last_applied_event_id == event.event_id:
                return Outcome.DUPLICATE, f"this event has already been applied: the row stands at {stands_at}"
            case Comparison.SAME:
                claimed_by = row.last_applied_event_id
                return Outcome.CONFLICT, f"two events claim one position: {stands_at} is event {claimed_by}"
            case Comparison.LOWER:
                return Outcome.STALE, f"a later event has already been applied: the row stands at {stands_at}"
            case Comparison.HIGHER:
                pass
            case never:
                assert_never(never)
    previous = event.position.previous
    if previous is not None and (stands_at is None or stands_at.number < previous):
        at = "there is no row yet" if stands_at is None else f"the row stands at {stands_at}"
        return Outcome.EARLY, f"the event at {previous} comes before this one, and {at}: send this one again after it"
    return None
