"""Verdicts: the interval of a median, and a verdict only where it lies on one side of the target."""

import random

import pytest

from benchmarks.verdicts import CONFIDENCE, Verdict, interval, is_open, verdict


def test_an_interval_of_five_rounds_reaches_from_the_smallest_to_the_largest() -> None:
    assert interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (1.0, 5.0)


def test_an_interval_of_many_rounds_leaves_out_the_outermost() -> None:
    assert interval([float(number) for number in range(1, 22)]) == (6.0, 16.0)


@pytest.mark.parametrize("rounds", [5, 7, 11, 21])
def test_an_interval_has_the_true_median_as_often_as_it_says(rounds: int) -> None:
    numbers = random.Random(rounds)
    found = 0
    for _ in range(2000):
        low, high = interval([numbers.expovariate(1.0) for _ in range(rounds)])
        found += low <= 0.6931 <= high  # the median of that distribution
    assert found / 2000 > CONFIDENCE - 0.02


@pytest.mark.parametrize(
    ("bounds", "at_most", "expected"),
    [
        ((1.4, 1.6), False, Verdict.MET),
        ((0.9, 1.2), False, Verdict.NOT_MET),
        ((1.2, 1.4), False, Verdict.OPEN),
        ((0.9, 1.2), True, Verdict.MET),
        ((1.4, 1.6), True, Verdict.NOT_MET),
        ((1.3, 1.3), False, Verdict.MET),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(
    bounds: tuple[float, float], at_most: bool, expected: Verdict
) -> None:
    assert verdict(bounds, 1.3, at_most=at_most) is expected


def test_rounds_are_open_while_the_ratio_lies_on_both_sides() -> None:
    measured = {"ours": [10.0, 14.0, 12.0], "other": [10.0, 10.0, 10.0]}
    assert is_open(measured, {"other": 1.3})
    assert not is_open(measured, {"other": 1.5})
    assert not is_open(measured, {"absent": 1.3})
