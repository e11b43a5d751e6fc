"""How much a caller may do: a token bucket for each principal, in each process.

A unit is one point call. The bucket is kept as a single number, the time at which it will be full again (the generic
cell rate algorithm, ITU-T I.371): to take from it is one addition and one comparison.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from math import ceil, floor

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


class Limits:
    """The buckets of one process. `rate` and `burst` are for principals without their own; `clock` is monotonic."""

    def __init__(
        self, *, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._full_at: dict[str, float] = {}

    def take(self, principal: Principal, weight: float = 1.0) -> LimitedError | None:
        """Take `weight` units from the principal's bucket. The error says when they would be there; nothing is taken
        then. A call that weighs more than a whole burst costs a whole burst, and so is possible."""
        if principal.unlimited:
            return None
        rate, burst = principal.rate or self._rate, principal.burst
        if burst is None:
            burst = max(1.0, 2 * rate) if principal.rate else self._burst
        now = self._clock()
        buckets, name = self._full_at, principal.name
        full_at = buckets.get(name, now)
        full_at = max(full_at, now)
        after = full_at + (min(burst, weight)) / rate
        wait = after - now - burst / rate
        if wait > ROUNDING:
            return self._refused(rate, burst, full_at - now, wait)
        buckets[name] = after
        if len(buckets) > BUCKETS:
            self._forget(now)
        return None

    def _forget(self, now: float) -> None:
        """Make room: full buckets say nothing; where that does not do, the oldest half goes."""
        self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
        if len(self._full_at) > BUCKETS:
            self._full_at = dict(list(self._full_at.items())[BUCKETS // 2 :])

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
