"""What sightings say about ids."""

import pytest

from app.feed.horizon import MOST, Horizon

A, B, C = "1/1", "2/1", "3/1"
PREPARED = "-1/700"


def seen(horizon: Horizon, drawn: int, *writers: str) -> int:
    """The horizon after one more sighting."""
    horizon.observe(drawn, frozenset(writers))
    return horizon.settled


def test_without_a_writer_all_is_settled() -> None:
    """Nobody can have drawn an id that is not seen."""
    horizon = Horizon()
    assert seen(horizon, 0) == 0
    assert seen(horizon, 10) == 10
    assert not horizon.waits


def test_ids_are_settled_when_the_last_of_their_writers_is_gone() -> None:
    """Those that came later hold nothing up."""
    horizon = Horizon()
    assert seen(horizon, 10, A, B) == 0
    assert horizon.waits
    assert seen(horizon, 20, B, C) == 0
    assert seen(horizon, 30, C) == 10
    assert seen(horizon, 40, A) == 30
    assert seen(horizon, 50) == 50
    assert not horizon.waits


def test_a_writer_that_has_drawn_nothing_new_is_not_waited_for() -> None:
    """What is settled stays so, and nothing is left to settle."""
    horizon = Horizon()
    seen(horizon, 10)
    assert seen(horizon, 10, A) == 10
    assert not horizon.waits


def test_a_writer_that_prepares_its_commit_is_waited_for() -> None:
    """It goes on under another name, which nobody can connect with the first."""
    horizon = Horizon()
    seen(horizon, 10, A)
    assert seen(horizon, 20, PREPARED) == 0
    assert seen(horizon, 20, B) == 20


def test_sightings_are_bounded() -> None:
    """While one transaction stays open, sightings give way to newer ones, and nothing is settled early."""
    horizon = Horizon()
    for drawn in range(1, 10 * MOST):
        assert seen(horizon, drawn, A, f"4/{drawn}") == 0
    assert seen(horizon, 10 * MOST, f"4/{10 * MOST - 1}") == MOST - 1
    assert seen(horizon, 10 * MOST + 1) == 10 * MOST + 1


def test_a_sequence_that_goes_back_is_another_past() -> None:
    """A restored database has drawn fewer ids."""
    horizon = Horizon()
    seen(horizon, 10)
    with pytest.raises(LookupError, match="ids up to 10 were settled, and now only 9 are drawn"):
        horizon.observe(9, frozenset())
