"""The clock by which boards know when a deadline has passed."""

from datetime import UTC, datetime, timedelta

from app.feed.boards import MEASURED, BoardClock

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_the_smallest_difference_counts() -> None:
    """A measurement that took long says less than one that did not."""
    clock = BoardClock()
    clock.measure(NOON, 100.2)
    clock.measure(NOON + timedelta(seconds=1), 101.001)
    clock.measure(NOON + timedelta(seconds=2), 102.5)
    assert round(clock.monotonic_at(NOON + timedelta(seconds=10)), 6) == 110.001


def test_old_measurements_are_forgotten() -> None:
    """So a clock that is set is followed."""
    clock = BoardClock()
    clock.measure(NOON, 100.0)
    for second in range(MEASURED):
        clock.measure(NOON + timedelta(seconds=second), 107.0 + second)
    assert round(clock.monotonic_at(NOON), 6) == 107.0
