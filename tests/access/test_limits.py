"""Limits: what a principal may do in which time, and what is said past it."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.access import limits
from app.access.limits import Limits, weight_of_array
from app.access.principals import ANYONE, Grant, Principal


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def caller(name: str = "key:a", *, rate: float | None = 10, burst: float | None = 20) -> Principal:
    """A principal with limits of its own."""
    return Principal(name, Grant(frozenset()), rate, burst)


def test_a_burst_and_then_the_rate() -> None:
    """A full bucket has the burst; after it, as much comes through as the rate gives."""
    clock = Clock()
    bucket = Limits(clock=clock)
    assert [bucket.take(caller()) for _ in range(20)] == [None] * 20
    assert bucket.take(caller()) is not None
    clock.now += 0.5
    assert [bucket.take(caller()) is None for _ in range(6)] == [True] * 5 + [False]


def test_what_is_said_past_the_limit() -> None:
    """429 with Retry-After in whole seconds, and what the rate-limit fields say."""
    clock = Clock()
    bucket = Limits(clock=clock)
    assert bucket.take(caller(), 15) is None
    refused = bucket.take(caller(), 17)
    assert refused is not None
    assert refused.status == 429
    assert refused.retry_after == pytest.approx(timedelta(seconds=1.2), abs=timedelta(milliseconds=1))
    assert refused.headers == {
        "Retry-After": "2",
        "RateLimit-Policy": '"principal";q=20;w=2',
        "RateLimit": '"principal";r=5;t=2',
    }
    clock.now += refused.retry_after.total_seconds()
    assert bucket.take(caller(), 17) is None


def test_what_is_refused_costs_nothing() -> None:
    """A caller that goes on trying is not punished for it."""
    clock = Clock()
    bucket = Limits(clock=clock)
    bucket.take(caller(), 20)
    for _ in range(100):
        assert bucket.take(caller()) is not None
    clock.now += 0.1
    assert bucket.take(caller()) is None


def test_principals_have_buckets_of_their_own() -> None:
    """One that has used up its own is no concern of another one; nobody limits a service without keys."""
    bucket = Limits(rate=1, burst=1, clock=Clock())
    assert bucket.take(caller("a", rate=None, burst=None)) is None
    assert bucket.take(caller("a", rate=None, burst=None)) is not None
    assert bucket.take(caller("b", rate=None, burst=None)) is None
    assert [bucket.take(ANYONE) for _ in range(100)] == [None] * 100


def test_a_heavy_call_is_possible() -> None:
    """One that weighs more than the burst takes the whole bucket, when it is full."""
    clock = Clock()
    bucket = Limits(clock=clock)
    assert bucket.take(caller(), 5000) is None
    assert bucket.take(caller(), 5000) is not None
    clock.now += 2
    assert bucket.take(caller(), 5000) is None


@pytest.mark.parametrize(("items", "weight"), [(0, 1), (1, 1), (100, 1), (150, 1.5), (10_000, 100)])
def test_the_weight_of_an_array(items: int, weight: float) -> None:
    """A hundredth of a unit for each item, and a call at least."""
    assert weight_of_array(items) == weight


def test_the_number_of_buckets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full ones are forgotten, which changes nothing; then the oldest."""
    monkeypatch.setattr(limits, "BUCKETS", 10)
    clock = Clock()
    bucket = Limits(clock=clock)
    for number in range(10):
        bucket.take(caller(f"early {number}"))
    clock.now += 60
    bucket.take(caller("late"), 20)
    assert len(bucket._buckets) == 1
    assert bucket.take(caller("late")) is not None
    for number in range(100):
        bucket.take(caller(f"crowd {number}"), 20)
    assert len(bucket._buckets) <= 10


@given(
    st.floats(0.1, 1000),
    st.floats(1, 1000),
    st.lists(st.tuples(st.floats(0, 5), st.floats(1, 50)), max_size=60),
)
def test_nobody_gets_more_than_granted(rate: float, burst: float, calls: list[tuple[float, float]]) -> None:
    """In any time, at most the burst and what the rate gives in that time."""
    clock = Clock()
    bucket = Limits(clock=clock)
    used = 0.0
    for pause, weight in calls:
        clock.now += pause
        if bucket.take(caller(rate=rate, burst=burst), weight) is None:
            used += min(weight, burst)
    assert used <= burst + rate * (clock.now - 1000.0) + 1e-3
