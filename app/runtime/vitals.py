"""The vital signs of a process, taken every second: its event loop, memory and descriptors, pools and lanes."""

import asyncio
import math
import os
import resource
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app.concurrency.worker import Worker, until_stopped
from app.runtime.metrics import Metrics
from app.store.database import Database

EVERY = 1.0  # seconds
PROCESS = Path("/proc/self")  # on Linux; elsewhere memory and descriptors are not known
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Vitals(Worker):
    """Sets the gauges of this process."""

    def __init__(
        self, metrics: Metrics, databases: Sequence[Database], lanes: Mapping[str, Callable[[], int]]
    ) -> None:
        """`lanes` gives the number of questions that wait, by the name of the lane."""
        self._metrics = metrics
        self._databases = databases
        self._lanes = lanes

    async def run(self, stop: asyncio.Event) -> None:
        """Set them every second until `stop` (see Worker)."""
        await until_stopped(self._run(), stop)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        lag = 0.0
        while True:
            self.take(lag)
            due = loop.time() + EVERY
            await asyncio.sleep(EVERY)
            lag = max(0.0, loop.time() - due)

    def take(self, lag: float) -> None:
        """Set the gauges now. `lag` is by how many seconds the event loop was late."""
        self._metrics.process(lag, _memory(), _descriptors(), _max_descriptors())
        for database in self._databases:
            self._metrics.pool(database.name, *database.connections)
        for name, waiting in self._lanes.items():
            self._metrics.waiting(name, waiting())


def _memory() -> int | None:
    """Bytes of this process in RAM."""
    try:
        return int((PROCESS / "statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return None


def _descriptors() -> int | None:
    """Open descriptors of this process, this look's own left out."""
    try:
        return len(os.listdir(PROCESS / "fd")) - 1  # noqa: PTH208 - Path.iterdir() does the same, and slower
    except OSError:
        return None


def _max_descriptors() -> float:
    """The soft limit of open descriptors: beyond it no connection can be accepted or made."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft
