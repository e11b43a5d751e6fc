"""How much a caller may do: a token bucket for each principal, in each process.

A unit is one point call. The bucket is kept as a single number, the time at which it will be full again (the generic
cell rate algorithm, ITU-T I.371): to take from it is one addition and one comparison.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from math import ceil, floor

from msgspec import Struct

from app.access.principals import Principal
from app.access.refusals import LimitedError

RATE = 10_000.0  # units a second, of a principal without a rate of its own
BURST = 20_000.0  # units at once, of a principal without a burst of its own
BUCKETS = 10_000  # principals that are remembered; beyond that, full ones are forgotten, then the oldest half
ROUNDING = 1e-6  # seconds
FULL_SCAN = 20.0  # units of a list that may read many more rows than it returns


def weight_of_array(items: int) -> float:
    """Units of an array or a lookup."""
    return max(1.0, items / 100)


class Bucket(Struct):
    """The bucket of one principal. Divided once, when it is made: a point call takes a multiplication."""

    rate: float  # units a second
    burst: float  # units
    unit: float  # seconds in which one unit comes
    most: float  # seconds until an empty bucket is full, rounded up
    full_at: float = float("-inf")


class Limits:
    """The buckets of one process. `rate` and `burst` are for principals without their own; `clock` is monotonic."""

    def __init__(
        self, *, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}

    def take(self, principal: Principal, weight: float = 1.0) -> LimitedError | None:
        """Take `weight` units from the principal's bucket. The error says when they would be there; nothing is taken
        then. A call that weighs more than a whole burst costs a whole burst, and so is possible."""
        if principal.unlimited:
            return None
        bucket = self._buckets.get(principal.name)
        now = self._clock()
        if bucket is None:
            bucket = self._new_bucket(principal, now)
        full_at = bucket.full_at
        full_at = max(full_at, now)
        after = full_at + (min(bucket.burst, weight)) * bucket.unit
        if after - now > bucket.most:
            return self._refused(bucket.rate, bucket.burst, full_at - now, after - now - bucket.burst * bucket.unit)
        bucket.full_at = after
        return None

    def _new_bucket(self, principal: Principal, now: float) -> Bucket:
        rate, burst = principal.rate or self._rate, principal.burst
        if burst is None:
            burst = max(1.0, 2 * rate) if principal.rate else self._burst
        if len(self._buckets) >= BUCKETS:
            self._forget(now)
        bucket = self._buckets[principal.name] = Bucket(rate, burst, 1 / rate, burst / rate + ROUNDING)
        return bucket

    def _forget(self, now: float) -> None:
        """Make room: full buckets say nothing; where that does not do, the oldest half goes."""
        self._buckets = {name: bucket for name, bucket in self._buckets.items() if bucket.full_at > now}
        if len(self._buckets) >= BUCKETS:
            self._buckets = dict(list(self._buckets.items())[BUCKETS // 2 :])

    @staticmethod
    def _refused(rate: float, burst: float, until_full: float, wait: float) -> LimitedError:
        left = max(0, floor(burst - until_full * rate))
        seconds = max(1, ceil(wait))
        headers = {
            "Retry-After": str(seconds),
            # draft-ietf-httpapi-ratelimit-headers: quota and window in seconds; what remains and until when
            "RateLimit-Policy": f'"principal";q={floor(burst)};w={max(1, ceil(burst / rate))}',
            "RateLimit": f'"principal";r={left};t={seconds}',
        }
        message = f"this caller may use {rate:g} units a second; try again in {seconds} s"
        return LimitedError(message, headers, timedelta(seconds=wait))
