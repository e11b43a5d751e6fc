"""What the log says of requests: every one, those with problems, or none; and one line a minute about the rest."""

import asyncio
import logging
from urllib.parse import quote

from app.settings import AccessLogging
from app.tracing.context import trace_of

log = logging.getLogger("app.access")

MINUTE = 60.0  # seconds that one summary covers
WAITING = frozenset({"/v1/changes"})  # routes that answer late because they were asked to wait
_GONE = 499  # the client disconnected before its request was complete


class AccessLog:
    """The requests of one process.

    With `problems` a line is written for each answer with status 5xx, each request that took `slow` seconds or more,
    and each request of a sampled trace. An answer with status 4xx has a line with its reason at level debug. Requests
    without a line are counted, and a summary says a minute after the first of them how many they were.
    """

    def __init__(self, kept: AccessLogging = AccessLogging.ALL, slow: float = 1.0) -> None:
        self.kept = kept
        self._slow = slow
        self._is_quiet = kept is AccessLogging.OFF
        self._all = kept is AccessLogging.ALL
        self._classes = [0] * 6  # requests without a line, by the first digit of their status
        self._longest = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def wants(
        self, route: str, status: int, seconds: float, traceparent: bytes | None, *, waits: bool = False
    ) -> int:
        """The level of the line about a request; 0 without one. The request is counted then.

        One that `waits` was to take long, and is not slow.
        """
        if self._is_quiet:
            return 0
        if status >= 500:
            return logging.WARNING
        if self._all:
            return logging.INFO
        if seconds >= self._slow and not waits and route not in WAITING:
            return logging.WARNING
        if traceparent is not None and (trace := trace_of(traceparent)) is not None and trace[2]:
            return logging.INFO
        self._classes[status // 100] += 1
        self._longest = max(self._longest, seconds)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(MINUTE, self.sum_up)
        return logging.DEBUG if status >= 400 and log.isEnabledFor(logging.DEBUG) else 0

    def write(
        self,
        level: int,
        *,
        method: str,
        path: str,
        route: str,
        status: int,
        seconds: float,
        principal: str,
        peer: str,
        traceparent: bytes | None,
        reason: str | None,
    ) -> None:
        """Write the line about a request."""
        if not log.isEnabledFor(level):
            return
        path = quote(path)  # a line break in the path would forge a line of the log
        extra: dict[str, object] = {
            "event": "request",
            "method": method,
            "path": path,
            "route": route,
            "status": status,
            "outcome": _outcome(status),
            "seconds": seconds,
            "principal": principal,
            "peer": peer,
            "reason": reason,
        }
        if (trace := trace_of(traceparent)) is not None:
            extra |= {"trace_id": trace[0], "span_id": trace[1]}
        told = f": {reason}" if reason else ""
        line = "%s %s %d %.1f ms %s %s%s"
        log.log(level, line, method, path, status, seconds * 1000, principal, peer, told, extra=extra)

    def sum_up(self) -> None:
        """Write the summary of the requests without a line, if there were any."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        classes, longest = self._classes, self._longest
        self._classes, self._longest = [0] * 6, 0.0
        if (count := sum(classes)) == 0:
            return
        extra = {"event": "requests", "count": count, "refused": classes[4], "longest": longest}
        log.info(
            "%d more requests in the last minute: %d were answered with 4xx; the longest took %.1f ms",
            count,
            classes[4],
            longest * 1000,
            extra=extra,
        )


def _outcome(status: int) -> str:
    """How a request ended, in a word."""
    if status == _GONE:
        return "gone"
    return "failed" if status >= 500 else "refused" if status >= 400 else "answered"
