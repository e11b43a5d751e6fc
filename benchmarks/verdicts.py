"""What rounds say about a target: the interval of their median, and a verdict only where the interval allows one."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum

CONFIDENCE = 0.93  # that the interval has the true median; five rounds, from smallest to largest, give 0.9375

Interval = tuple[float, float]


class Verdict(StrEnum):
    """Whether a target is met; open where the interval lies on both sides of it."""

    MET = "met"
    NOT_MET = "not met"
    OPEN = "open"


def interval(values: Sequence[float]) -> Interval:
    """The bounds between which the median of such values lies, with CONFIDENCE.

    They are order statistics, so nothing is assumed about the distribution of the values: half of all values lie
    below the median, so the number of values below it is binomial. With fewer than five values the bounds are the
    smallest and the largest, with less confidence.
    """
    ordered, count = sorted(values), len(values)
    beyond = 0  # values on each side that lie outside the interval
    while beyond + 1 < count / 2 and 2 * _at_most(beyond + 1, count) <= 1 - CONFIDENCE:
        beyond += 1
    return ordered[beyond], ordered[-1 - beyond]


def _at_most(number: int, count: int) -> float:
    """The probability of at most so many heads in a count of tosses of a fair coin."""
    return sum(math.comb(count, heads) for heads in range(number + 1)) / 2.0**count


def verdict(bounds: Interval, target: float, *, at_most: bool) -> Verdict:
    """The verdict on a target, which is a lower bound unless `at_most`."""
    low, high = bounds
    if low < target < high:
        return Verdict.OPEN
    middle = (low + high) / 2
    return Verdict.MET if (middle <= target if at_most else middle >= target) else Verdict.NOT_MET


def ratios(ours: Sequence[float], other: Sequence[float]) -> list[float]:
    """The ratio of each round."""
    return [mine / theirs for mine, theirs in zip(ours, other, strict=True)]


def is_open(measured: Mapping[str, Sequence[float]], targets: Mapping[str, float]) -> bool:
    """Whether a target of the first contender's ratio to another one is still open."""
    first = next(iter(measured.values()))
    return any(
        verdict(interval(ratios(first, measured[name])), target, at_most=False) is Verdict.OPEN
        for name, target in targets.items()
        if name in measured
    )
