"""The horizon: which ids are settled after each sighting."""

import pytest

from app.feed.horizon import MOST, Horizon

A, B, C = "1/1", "2/1", "3/1"
PREPARED = "-1/700"


def seen(horizon: Horizon, drawn: int, *writers: str) -> int:
    """The horizon after one more sighting."""
    horizon.observe(drawn, frozenset(writers))
    return horizon.settled


def test_without_a_writer_all_is_settled() -> None:
    """Without a writer every id seen is settled, as no transaction can still hold one."""
    horizon = Horizon()
    assert seen(horizon, 0) == 0
    assert seen(horizon, 10) == 10
    assert not horizon.waits


def test_ids_are_settled_when_the_last_of_their_writers_is_gone() -> None:
    """Ids are settled when the last writer seen with them is gone; later writers do not delay them."""
    horizon = Horizon()
    assert seen(horizon, 10, A, B) == 0
    assert horizon.waits
    assert seen(horizon, 20, B, C) == 0
    assert seen(horizon, 30, C) == 10
    assert seen(horizon, 40, A) == 30
    assert seen(horizon, 50) == 50
    assert not horizon.waits


def test_a_writer_that_has_drawn_nothing_new_is_not_waited_for() -> None:
    """A new writer does not unsettle ids, and without new ids there is nothing to wait for."""
    horizon = Horizon()
    seen(horizon, 10)
    assert seen(horizon, 10, A) == 10
    assert not horizon.waits


def test_a_writer_that_prepares_its_commit_is_waited_for() -> None:
    """A prepared transaction is waited for too: it has another name, which nothing links to the first."""
    horizon = Horizon()
    seen(horizon, 10, A)
    assert seen(horizon, 20, PREPARED) == 0
    assert seen(horizon, 20, B) == 20


def test_sightings_are_bounded() -> None:
    """While a transaction stays open, new sightings replace old ones, and nothing is settled early."""
    horizon = Horizon()
    for drawn in range(1, 10 * MOST):
        assert seen(horizon, drawn, A, f"4/{drawn}") == 0
    assert seen(horizon, 10 * MOST, f"4/{10 * MOST - 1}") == MOST - 1
    assert seen(horizon, 10 * MOST + 1) == 10 * MOST + 1


def test_a_sequence_that_goes_back_is_another_past() -> None:
    """A sequence below the ids seen shows a restored database."""
    horizon = Horizon()
    seen(horizon, 10)
    with pytest.raises(LookupError, match="ids up to 10 were settled, and now only 9 are drawn"):
        horizon.observe(9, frozenset())
