"""Positions: their fields, their comparison, and the order in which a batch is folded."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.positions import MAX_NUMBER, Comparison, Position, compare, in_order
from tests.strategies import pure

SAME, LOWER, HIGHER, OTHER_TRACK = Comparison


def seq(number: int, previous: int | None = None) -> Position:
    """The position of a sequence."""
    return Position(sequence=number, previous=previous)


def off(number: int, partition: str = "p", previous: int | None = None) -> Position:
    """The position of an offset in a partition."""
    return Position(partition=partition, offset=number, previous=previous)


numbers = st.sampled_from([0, 1, 2, 3, 2**32, MAX_NUMBER])
positions = st.one_of(numbers.map(seq), st.builds(off, numbers, st.sampled_from("pq")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give either `sequence`, or both `partition` and `offset`"),
        ({"partition": "p"}, "give either `sequence`, or both `partition` and `offset`"),
        ({"offset": 1}, "give either `sequence`, or both `partition` and `offset`"),
        ({"previous": 1}, "give either `sequence`, or both `partition` and `offset`"),
        ({"sequence": 1, "offset": 1}, "give either `sequence`, or `partition` and `offset`, not both"),
        ({"sequence": 1, "partition": "p"}, "give either `sequence`, or `partition` and `offset`, not both"),
        (
            {"sequence": 1, "partition": "p", "offset": 1},
            "give either `sequence`, or `partition` and `offset`, not both",
        ),
        ({"sequence": 1, "previous": 1}, "`previous` (1) must be lower than the position (1)"),
        ({"sequence": 1, "previous": 2}, "`previous` (2) must be lower than the position (1)"),
        ({"sequence": 0, "previous": 0}, "`previous` (0) must be lower than the position (0)"),
        (
            {"partition": "p", "offset": 3, "previous": 3},
            "`previous` (3) must be lower than the position (3)",
        ),
    ],
)
def test_fields_that_do_not_name_one_place_are_refused(fields: dict[str, object], message: str) -> None:
    """Half a position, two positions at once, and a later `previous` are each an error that names the fault."""
    with pytest.raises(msgspec.ValidationError) as raised:
        msgspec.convert(fields, Position)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("position", "number", "words"),
    [
        (seq(0), 0, "sequence 0"),
        (seq(MAX_NUMBER, 7), MAX_NUMBER, f"sequence {MAX_NUMBER}"),
        (off(0), 0, "partition p offset 0"),
        (off(5, "topic-3", 4), 5, "partition topic-3 offset 5"),
    ],
    ids=str,
)
def test_a_position_has_a_number_and_says_where_it_is(position: Position, number: int, words: str) -> None:
    """`number` is the sequence or the offset; the text also names the track."""
    assert (position.number, str(position)) == (number, words)


@pytest.mark.parametrize(
    ("position", "other", "comparison"),
    [
        (seq(1), seq(1), SAME),
        (seq(1), seq(2), LOWER),
        (seq(2), seq(1), HIGHER),
        (seq(0), seq(MAX_NUMBER), LOWER),
        (off(1), off(1), SAME),
        (off(1), off(2), LOWER),
        (off(2), off(1), HIGHER),
        (off(1, "p"), off(1, "q"), OTHER_TRACK),
        (off(1, "p"), off(2, "P"), OTHER_TRACK),
        (off(1), seq(1), OTHER_TRACK),
        (seq(1), off(1), OTHER_TRACK),
        (seq(5, 4), seq(5, 1), SAME),
        (off(5, "p", 4), off(6, "p", 1), LOWER),
    ],
)
def test_two_positions_compare_on_one_track_alone(
    position: Position, other: Position, comparison: Comparison
) -> None:
    """Positions compare only within a sequence or a partition; `previous` is ignored."""
    assert compare(position, other) is comparison


@given(positions, positions)
@pure
def test_comparing_the_other_way_round_turns_the_answer_round(position: Position, other: Position) -> None:
    """Swapping two positions swaps lower and higher; same and incomparable stay."""
    turned = {LOWER: HIGHER, HIGHER: LOWER}
    comparison = compare(position, other)
    assert compare(other, position) is turned.get(comparison, comparison)


@given(st.lists(positions))
@pure
def test_ordering_sorts_each_track_within_its_own_places(came: list[Position]) -> None:
    """Ordering is a permutation that sorts each track stably within the places that the track had."""
    ordered = in_order(list(enumerate(came)), lambda item: item[1])
    assert sorted(arrival for arrival, _ in ordered) == list(range(len(came)))
    assert [position.partition for _, position in ordered] == [position.partition for position in came]
    for track in {position.partition for position in came}:
        of_track = [(position.number, arrival) for arrival, position in ordered if position.partition == track]
        assert all(before < after for before, after in pairwise(of_track))


def test_ordering_leaves_the_given_items_as_they_are() -> None:
    """Ordering accepts an iterator, and does not change a given list."""
    came = [seq(3), off(2), seq(1), off(1, "q"), off(1), seq(1, 0)]
    assert in_order(iter(came), lambda position: position) == [
        seq(1),
        off(1),
        seq(1, 0),
        off(1, "q"),
        off(2),
        seq(3),
    ]
    assert came[0] == seq(3)
