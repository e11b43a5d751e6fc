"""Rows that change tracks: before a topic's first message, after the messages of its entity, and wrong clocks."""

import pytest
from msgspec.structs import replace

from app.domain.changes import Change, ChangeOutcome
from app.domain.events import Event, EventBase
from app.domain.folding import fold
from app.domain.order import check_order, within
from app.domain.positions import Comparison, Position, before_topic, compare, topic_of
from app.domain.projection import REGISTRATION
from app.domain.registration import Registration, Timing
from app.domain.results import Outcome
from app.domain.states import RegistrationState
from app.projection.changes import ChangeLog
from tests.making import NODE, event, row, when

TIMING = Timing()


def at(offset: int, partition: str) -> Position:
    """A place in a partition."""
    return Position(partition=partition, offset=offset)


def standing(position: Position) -> Registration:
    """An active row at a position, last changed at second 10."""
    active = row(RegistrationState.ACTIVE, updated_at=when(10), version=4)
    return replace(
        active,
        last_applied_sequence=position.sequence,
        last_applied_partition=position.partition,
        last_applied_offset=position.offset,
    )


def heartbeat(position: Position, seconds: float) -> Event:
    """A heartbeat at a position and a time."""
    return replace(event("node.heartbeat", 1), position=position, occurred_at=when(seconds))


@pytest.mark.parametrize(
    ("name", "topic"),
    [("nodes-0", "nodes"), ("nodes-1-12", "nodes-1"), ("nodes-*", "nodes"), ("nodes-1-*", "nodes-1")],
)
def test_a_partition_names_its_topic(name: str, topic: str) -> None:
    """The number of the partition, or the star, follows the last hyphen."""
    assert topic_of(name) == topic


@pytest.mark.parametrize("name", ["nodes", "nodes-", "-0", "nodes-a", "nodes-0x", "nodes-²", "", "rack 7"])
def test_other_names_have_no_topic(name: str) -> None:
    """A partition that is not named as Kafka's are has no topic."""
    assert topic_of(name) is None


@pytest.mark.parametrize("partition", ["nodes-0", "nodes-12"])
@pytest.mark.parametrize("offset", [0, 7])
def test_every_message_of_a_topic_comes_after_its_beginning(partition: str, offset: int) -> None:
    """A row before a topic's first message takes the next one, whatever its partition and offset."""
    assert compare(at(offset, partition), before_topic("nodes")) is Comparison.HIGHER


@pytest.mark.parametrize(
    "position", [at(0, "other-0"), at(0, "nodes-1-0"), at(0, "nodes"), at(0, "nodes-x"), Position(sequence=9)]
)
def test_other_topics_are_other_tracks(position: Position) -> None:
    """A row before a topic's first message takes no event of another source."""
    assert compare(position, before_topic("nodes")) is Comparison.OTHER_TRACK


def test_before_the_first_message_of_a_partition() -> None:
    """A row before a partition's first message takes that message, and none of another partition."""
    assert compare(at(0, "nodes-1"), at(-1, "nodes-1")) is Comparison.HIGHER
    assert compare(at(0, "nodes-2"), at(-1, "nodes-1")) is Comparison.OTHER_TRACK


@pytest.mark.parametrize(
    ("stands_at", "position", "seconds", "moves"),
    [
        (at(40, "nodes-0"), at(3, "nodes-2"), 11, True),
        (at(40, "nodes-0"), at(3, "nodes-2"), 10, True),  # at the same time
        (at(40, "nodes-0"), at(3, "nodes-2"), 9, False),
        (at(40, "nodes-0"), at(3, "other-2"), 11, True),  # both topics are read
        (at(40, "nodes-0"), at(3, "foreign-2"), 11, False),
        (at(40, "foreign-0"), at(3, "nodes-2"), 11, False),
        (Position(sequence=4), at(3, "nodes-2"), 11, False),
        (at(40, "rack 7"), at(3, "nodes-2"), 11, False),
    ],
)
def test_a_row_follows_newer_messages(stands_at: Position, position: Position, seconds: float, moves: bool) -> None:
    """A row moves to another partition of the topics that are read, for an event that is not older than its last."""
    follow = within({"nodes", "other"}.__contains__)
    assert follow(standing(stands_at), heartbeat(position, seconds)) is moves


def test_a_move_is_a_version_and_a_change_of_its_own() -> None:
    """The fold moves the row, says so in the log, and then takes the event in as on any row."""
    before = standing(at(40, "nodes-0"))
    moving: EventBase = heartbeat(at(3, "nodes-2"), 20)
    log = ChangeLog()
    folded = fold(
        REGISTRATION,
        {moving.key: before},
        [moving, heartbeat(at(4, "nodes-2"), 21), heartbeat(at(41, "nodes-0"), 15)],
        TIMING,
        by_position=False,
        log=log.log,
        follow=within({"nodes"}.__contains__),
        log_move=log.rebased,
    )
    assert [each.outcome for each in folded.results] == [Outcome.APPLIED, Outcome.APPLIED, Outcome.CONFLICT]
    [save] = folded.saves
    assert (save.row.position, save.row.version) == (at(4, "nodes-2"), before.version + 3)
    [change] = folded.changes
    assert isinstance(change, Change)
    assert (change.outcome, change.version, change.partition, change.offset) == (
        ChangeOutcome.REBASED,
        before.version + 1,
        "nodes-2",
        -1,
    )


def test_a_repeat_on_the_new_track_is_a_duplicate() -> None:
    """Once a row has moved, the message that it followed is compared with its position as any other."""
    follow = within({"nodes"}.__contains__)
    moving = heartbeat(at(3, "nodes-2"), 20)
    for _ in range(2):
        folded = fold(
            REGISTRATION,
            {moving.key: standing(at(40, "nodes-0"))},
            [moving, moving],
            TIMING,
            by_position=False,
            follow=follow,
        )
        assert [each.outcome for each in folded.results] == [Outcome.APPLIED, Outcome.DUPLICATE]


def test_without_the_rule_nothing_moves() -> None:
    """An event of another partition is a conflict, however new it is."""
    refusal = check_order(standing(at(40, "nodes-0")), heartbeat(at(3, "nodes-2"), 11))
    assert refusal is not None
    assert refusal[0] is Outcome.CONFLICT


# --- Clocks --------------------------------------------------------------------------------------------------------

YEAR = 365 * 86_400
WRONG = row(RegistrationState.ACTIVE, last_heartbeat_at=when(10 * YEAR), liveness_deadline=when(10 * YEAR + 90))


def after(beating: Registration, seconds: float, timing: Timing) -> Registration:
    """The row after a heartbeat at a time."""
    beat = replace(event("node.heartbeat", 18), occurred_at=when(seconds))
    folded = fold(REGISTRATION, {beat.key: beating}, [beat], timing, by_position=False)
    return folded.saves[0].row


def test_a_heartbeat_replaces_one_that_no_correct_clock_made() -> None:
    """The newest heartbeat lies after every time that a clock can show: a later one lowers it, and its deadline."""
    lowered = after(WRONG, 100, replace(TIMING, correct_until=when(400)))
    assert (lowered.last_heartbeat_at, lowered.liveness_deadline) == (when(100), when(190))
    assert lowered.entity_id == NODE


@pytest.mark.parametrize("correct_until", [None, 10 * YEAR])
def test_a_heartbeat_that_a_clock_can_have_made_stays(correct_until: float | None) -> None:
    """An older heartbeat changes nothing where the newest one may be right, or the time is not known."""
    timing = replace(TIMING, correct_until=None if correct_until is None else when(correct_until))
    kept = after(WRONG, 100, timing)
    assert (kept.last_heartbeat_at, kept.liveness_deadline) == (WRONG.last_heartbeat_at, WRONG.liveness_deadline)
