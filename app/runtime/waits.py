"""The waits of a connection for its client, and their bounds in seconds."""

import asyncio
import enum
from collections.abc import Callable

HEAD_SECONDS = 10.0  # that a request line and header section may take
BODY_SECONDS = 30.0  # without a byte of a body that is waited for
LINGER_SECONDS = 2.0  # that a client has to read its last answer, while what it still sends is dropped
READER_SECONDS = 30.0  # in which a client has to read some of what waits for it
CLOSE_SECONDS = 30.0  # until a connection that does not get closed is broken off
GOODBYE_SECONDS = 0.5  # that a client has to end its side of an idle TLS connection, when the service stops


class Awaited(enum.Enum):
    """What a connection waits for."""

    REQUEST = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    READER = enum.auto()  # the client is to read what was sent to it
    CLOSE = enum.auto()


class WaitTimer:
    """The one wait of a connection that counts now, and the timer that ends it.

    `on_time` is called with what was awaited when its time has passed. Waits begin with each request, and nearly all
    end early: so a new wait leaves the timer alone that goes off before it is due, and that timer is then set again.
    """

    __slots__ = ("_due", "_loop", "_on_time", "_timer", "_timer_due", "awaited")

    def __init__(self, loop: asyncio.AbstractEventLoop, on_time: Callable[[Awaited], None]) -> None:
        self.awaited: Awaited | None = None  # None: there is nothing to wait for
        self._loop = loop
        self._on_time = on_time
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    def begin(self, what: Awaited, seconds: float) -> None:
        """From now on wait so long for this, and for nothing else."""
        self.awaited = what
        self._due = self._loop.time() + seconds
        if self._timer is not None:
            if self._timer_due <= self._due:
                return
            self._timer.cancel()
        self._set()

    def cancel(self) -> None:
        """Wait for nothing any more: the connection is gone."""
        if self._timer is not None:
            self._timer.cancel()

    def _set(self) -> None:
        self._timer_due = self._due
        self._timer = self._loop.call_at(self._due, self._go_off)

    def _go_off(self) -> None:
        self._timer = None
        if self.awaited is None:
            return
        if self._due > self._loop.time():
            self._set()
        else:
            self._on_time(self.awaited)
