"""The position of an event in its source, and the comparison of two positions.

The rule that makes an outcome of it is `check_order` in `order.py`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Annotated, TypeVar

from msgspec import Meta, Struct

MAX_NUMBER = 2**63 - 1  # PostgreSQL's bigint

Number = Annotated[int, Meta(ge=0, le=MAX_NUMBER)]
Partition = Annotated[str, Meta(min_length=1, max_length=300)]


class Comparison(Enum):
    """The result of comparing two positions."""

    SAME = auto()
    LOWER = auto()
    HIGHER = auto()
    OTHER_TRACK = auto()


class Position(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A place in a source: `sequence`, which counts one entity's events, or `partition` and `offset` of a log.

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


def compare(position: Position, other: Position) -> Comparison:
    """Compare `position` with `other`. They are on one track when both have a sequence, or the same partition."""
    if position.partition != other.partition:
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
