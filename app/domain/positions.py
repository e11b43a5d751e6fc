"""The position of an event in its source, and the comparison of two positions.

The rule that makes an outcome of it is `check_order` in `order.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

MAX_NUMBER = 2**63 - 1  # PostgreSQL's bigint
BEFORE_FIRST = -1  # the offset of a row that stands before the first message of its partition; no event has it
ANY_PARTITION = "*"  # in place of a partition's number: the row stands before the first message of its whole topic

Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
MAX_PARTITION = 300  # characters
Partition = Annotated[str, Meta(min_length=1, max_length=MAX_PARTITION)]


class Comparison(Enum):
    """The result of comparing two positions."""

    SAME = auto()
    LOWER = auto()
    HIGHER = auto()
    OTHER_TRACK = auto()


class Position(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A place in a source: `sequence`, which counts one entity's events, or `partition` and `offset` of a log.

    The position of a row may also be before every message of a partition (its offset is BEFORE_FIRST), or of a topic.
    `previous` is the number of the event before this one for the same entity; it belongs to the event and takes
    no part in comparisons.
    """

    sequence: Number | None = None
    partition: Partition | None = None
    offset: Number | None = None
    previous: Number | None = None

    def __post_init__(self) -> None:
        """Raises ValueError when the fields do not name exactly one place."""
        if self.sequence is not None:
            if self.partition is not None or self.offset is not None:
                raise ValueError("give either `sequence`, or `partition` and `offset`, not both")
        elif self.partition is None or self.offset is None:
            raise ValueError("give either `sequence`, or both `partition` and `offset`")
        if self.previous is not None and self.previous >= self.number:
            raise ValueError(f"`previous` ({self.previous}) must be lower than the position ({self.number})")

    @property
    def number(self) -> int:
        """The sequence, or the offset."""
        number = self.offset if self.sequence is None else self.sequence
        assert number is not None  # noqa: S101 - __post_init__ holds this; the type checker cannot see it
        return number

    def __str__(self) -> str:
        if self.sequence is not None:
            return f"sequence {self.sequence}"
        return f"partition {self.partition} offset {self.offset}"


def before_topic(topic: str) -> Position:
    """The position before the first message of every partition of a topic."""
    return Position(partition=f"{topic}-{ANY_PARTITION}", offset=BEFORE_FIRST)


def topic_of(partition: str) -> str | None:
    """The topic of a partition named `<topic>-<number>`, or of `<topic>-*`; None for any other name."""
    topic, _, number = partition.rpartition("-")
    return topic if topic and (number == ANY_PARTITION or (number.isascii() and number.isdigit())) else None


def compare(position: Position, other: Position) -> Comparison:
    """Compare an event's position with `other`, a row's.

    They are on one track when both have a sequence, or the same partition. A row before the first message of a topic
    is on the track of each of the topic's partitions.
    """
    if position.partition != other.partition:
        if other.offset == BEFORE_FIRST and position.partition is not None:
            topic = topic_of(position.partition)
            if topic is not None and other == before_topic(topic):
                return Comparison.HIGHER
        return Comparison.OTHER_TRACK
    if position.number == other.number:
        return Comparison.SAME
    return Comparison.LOWER if position.number < other.number else Comparison.HIGHER


T = TypeVar("T")


def in_order(items: Iterable[T], position_of: Callable[[T], Position]) -> list[T]:
    """The items of one entity in the order of their positions; equal or incomparable ones keep the order given.

    Each track is sorted within the places of its own items, so no item changes places with an item of another track.
    """
    came = list(items)
    places: dict[str | None, list[int]] = defaultdict(list)
    for place, item in enumerate(came):
        places[position_of(item).partition].append(place)
    ordered = list(came)
    for track in places.values():
        for place, item in zip(track, sorted((came[p] for p in track), key=_number(position_of)), strict=True):
            ordered[place] = item
    return ordered


def _number(position_of: Callable[[T], Position]) -> Callable[[T], int]:
    return lambda item: position_of(item).number
