"""A consumer's fetches; the rest of reading from Kafka is tested on a broker in tests/inbound/test_consumer.py."""

from collections import defaultdict
from itertools import accumulate, pairwise

from hypothesis import given, strategies
from msgspec.structs import replace

from app.inbound.membership import LAST_TIME, Batch, Times
from app.store.watermarks import Advance
from app.wire.messages import KafkaMessage
from tests.making import when

MILLISECONDS = strategies.integers(0, LAST_TIME) | strategies.integers(1_767_225_600_000, 1_767_225_601_000)
PARTITIONS = strategies.integers(0, 2)


@given(partitions=strategies.lists(PARTITIONS, min_size=1, max_size=12), extra=strategies.booleans())
def test_halves_lead_where_the_whole_does(partitions: list[int], extra: bool) -> None:
    """A batch split down to single messages moves watermarks step by step to the same end as the whole."""
    numbers = defaultdict[int, int](lambda: 4)
    messages = []
    for partition in partitions:
        numbers[partition] += 1
        messages.append(KafkaMessage("topic", partition, numbers[partition], None, None, []))
    advances = [
        Advance(topic="topic", partition=each, expected=4, offset=last, message_at=when(each), caught_up=1.0)
        for each, last in numbers.items()
    ]
    if extra:  # a partition that has no message, and is found to end where it was
        advances.append(Advance(topic="topic", partition=9, expected=4, offset=4, caught_up=1.0))
    pieces = [Batch(messages, advances)]
    while any(len(each.messages) > 1 for each in pieces):
        pieces = [half for each in pieces for half in (each.halves() if len(each.messages) > 1 else (each,))]
    assert [message for each in pieces for message in each.messages] == messages
    ends: dict[int, Advance] = {}
    for piece in pieces:
        for each in piece.advances:
            assert each.expected == (ends[each.partition].offset if each.partition in ends else 4)
            ends[each.partition] = each
        [message] = piece.messages
        assert ends[message.partition].offset == message.offset
    assert [replace(ends[each.partition], expected=4) for each in advances] == advances


def reached(times: list[int]) -> int:
    """The time up to which a partition with messages of these times is read, in milliseconds."""
    known = Times()
    for each in times:
        known.add(each)
    assert known.reached is not None
    return round(known.reached.timestamp() * 1000)


@given(times=strategies.lists(MILLISECONDS, min_size=1).map(sorted))
def test_a_partition_whose_times_do_not_go_back_is_read_up_to_its_last_message(times: list[int]) -> None:
    """If message times never go back, a partition is read up to its last message's time."""
    assert reached(times) == times[-1]


@given(times=strategies.lists(MILLISECONDS, min_size=2))
def test_no_message_is_older_than_what_was_read_up_to_once_clocks_are_known(times: list[int]) -> None:
    """After a log's greatest step back in time, no later message is older than the time read up to."""
    steps = [newest - each for newest, each in zip(accumulate(times, max), times, strict=True)]
    known = steps.index(max(steps)) + 1
    for end in range(known, len(times)):
        assert min(times[end:]) >= reached(times[:end])


@given(times=strategies.lists(MILLISECONDS, min_size=2))
def test_a_message_that_is_older_is_taken_back_at_once(times: list[int]) -> None:
    """In any log, the last message read is never older than `reached`."""
    assert all(reached(times[:end]) <= times[end - 1] for end in range(1, len(times) + 1))


@given(times=strategies.lists(MILLISECONDS, min_size=1))
def test_what_counts_as_read_goes_back_only_by_a_greater_step_back(times: list[int]) -> None:
    """`reached` goes back only by the error that a message has shown, and otherwise never."""
    ends = [reached(times[:end]) for end in range(1, len(times) + 1)]
    for (before, after), time in zip(pairwise(ends), times[1:], strict=True):
        assert after >= before or after == time


def test_times_that_no_calendar_has_are_brought_into_it() -> None:
    """Message times outside the calendar are clamped, so no producer's number stops the reading."""
    assert reached([-5]) == 0
    assert reached([2**63 - 1]) == LAST_TIME


def test_without_times_nothing_is_known() -> None:
    """A partition of messages without times, as in Kafka's oldest formats, has no known time."""
    assert Times().reached is None
