"""A circuit breaker: after several failures in a row it refuses calls for a while, then one probe decides."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from app.errors import DatabaseDownError, DatabaseRefusesError, PoolExhaustedError, UnavailableError

log = logging.getLogger(__name__)

FAILURES = 5  # in a row
OPEN_FOR = timedelta(seconds=60)
LEAST_WAIT = 1.0  # seconds: `retry_after` of a call that is refused just after the breaker opened
PROBE_PENDING = timedelta(seconds=1)  # `retry_after` of a call that is refused while another call probes


class CircuitBreaker:
    """Lets calls through while the other side answers, and refuses them at once while it does not.

    `what` names the other side; a call that raises `down` is a failure. Closed: every call goes through; `failures`
    in a row open the breaker. Open: for `open_for`, every call is refused with UnavailableError, which says how long
    to wait. Then exactly one call, the probe, goes through. If it succeeds, the breaker closes; if it fails, the
    breaker is open again; if it is cancelled, the next call probes.

    No other error is a failure. An error with which the other side answered ends a row of failures; a cancellation,
    or a pool without a free connection, changes nothing. Calls that began before the breaker opened no longer change
    it. `clock` is monotonic, in seconds.

    With `on_open`, which is called when it opens, somebody else asks the other side meanwhile, and calls `recover`
    when it answers. Then a refused call is told to wait for as long again as the breaker has been open, so for a
    second after a short break, and for `open_for` at most.
    """

    def __init__(
        self,
        *,
        failures: int = FAILURES,
        open_for: timedelta = OPEN_FOR,
        clock: Callable[[], float] = time.monotonic,
        what: str = "the database",
        down: type[UnavailableError] = DatabaseDownError,
    ) -> None:
        self._limit = failures
        self._open_for = open_for.total_seconds()
        self._clock = clock
        self._what = what
        self._down = down
        self._failures = 0
        self._opened_at: float | None = None
        self._down_since = 0.0  # when it opened, if it is open
        self._openings = 0
        self._probing = False
        self._refusal: str | None = None  # the cause, where the other side named one
        self.on_open: Callable[[], None] | None = None
        self.on_change: Callable[[bool], None] = lambda _is_open: None  # called when it opens, and when it closes

    @property
    def is_open(self) -> bool:
        """Whether calls are refused now, except for the probe."""
        return self._opened_at is not None

    def recover(self) -> None:
        """Close: the other side answers again."""
        self._failures = 0
        if self._opened_at is not None:
            self._opened_at = None
            log.info("%s answers again", self._what, extra={"event": "breaker.closed", "part": self._what})
            self.on_change(False)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Guard one call: refuse it, or learn from its end."""
        probe, began_in = self._enter(), self._openings
        ended_well: bool | None = None
        try:
            yield
            ended_well = True
        except self._down as error:
            ended_well = False
            self._refusal = str(error) if isinstance(error, DatabaseRefusesError) else None
            raise
        except PoolExhaustedError:
            raise
        except Exception:
            ended_well = True
            raise
        finally:
            self._leave(probe=probe, began_in=began_in, ended_well=ended_well)

    def _enter(self) -> bool:
        """Let a call in. True: it is the probe."""
        if self._opened_at is None:
            return False
        left = self._opened_at + self._open_for - self._clock()
        if left > 0 or self._probing:
            wait = timedelta(seconds=left) if left > 0 else PROBE_PENDING
            if self.on_open is not None:
                wait = timedelta(seconds=min(self._open_for, max(LEAST_WAIT, self._clock() - self._down_since)))
            said = self._refusal or f"{self._what} did not answer and is not called again yet"
            raise UnavailableError(said, retry_after=wait)
        self._probing = True
        return True

    def _leave(self, *, probe: bool, began_in: int, ended_well: bool | None) -> None:
        if probe:
            self._probing = False
        elif began_in != self._openings:
            return
        match ended_well:
            case True:
                self.recover()
            case False:
                self._failures += 1
                if probe or self._failures >= self._limit:
                    was_open, self._opened_at = self.is_open, self._clock()
                    if not was_open:
                        self._down_since = self._opened_at
                        told = "%s did not answer %d times in a row: calls are refused for now"
                        extra = {"event": "breaker.opened", "part": self._what}
                        log.warning(told, self._what, self._failures, extra=extra)
                        self.on_change(True)
                    self._openings += 1
                    if self.on_open is not None:
                        self.on_open()
            case None:
                pass
