"""Worker processes: started, replaced when they end or hang, restarted one after the other, and stopped."""

import logging
import multiprocessing
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import FrameType

from app.errors import StartError
from app.runtime.signals import ignore_signals

log = logging.getLogger(__name__)

HANGING = 30.0  # seconds without a sign of life, from a worker that has given one
READY = 600.0  # seconds that a successor has to get ready; the worker before it goes on meanwhile
AGAIN = 1.0  # seconds until a worker that could not start is started again; each further time twice as long
AT_MOST = 30.0  # seconds between two such attempts
KILLED_AFTER = 10.0  # seconds beyond its patience, for a worker that has been told to stop
POLL = 0.5  # seconds between two looks at the clock

SPAWN = multiprocessing.get_context("spawn")
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
ProcessWork = Callable[[socket.socket, Connection], None]


class WorkerProcess:
    """One process. It is ready from its first sign of life on."""

    def __init__(self, work: ProcessWork, listener: socket.socket) -> None:
        self.signs, theirs = SPAWN.Pipe(duplex=False)
        self.process = SPAWN.Process(target=_begin, args=(work, listener, theirs))
        # Ctrl-C goes to the whole process group: one that is still importing would answer with a traceback.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.started_at = self.seen_at = time.monotonic()
        self.is_ready = False
        self._stopped_at = 0.0

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self.process.pid or 0

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.exitcode is not None

    @property
    def failed(self) -> bool:
        """Whether it has ended by itself with an error, and not by a signal."""
        return (self.process.exitcode or 0) > 0

    def look(self) -> None:
        """Take in its signs of life. A closed pipe is the end of the process, which has_ended tells."""
        with suppress(OSError, EOFError):
            while self.signs.poll():
                self.signs.recv_bytes()
                self.seen_at, self.is_ready = time.monotonic(), True

    def stop(self) -> None:
        """Tell it to end what it has begun, and to end."""
        self._stopped_at = time.monotonic()
        if not self.has_ended:
            self.process.terminate()

    def is_overdue(self, patience: float) -> bool:
        """Whether it was told to stop more than `patience` seconds ago."""
        return time.monotonic() - self._stopped_at > patience

    def end(self, patience: float) -> None:
        """Wait for its end, and bring it about when that takes longer than `patience` seconds."""
        self.process.join(patience)
        if not self.has_ended:
            log.error(
                "worker [%d] did not stop in time, and was killed",
                self.pid,
                extra={"event": "worker.killed", "worker": self.pid},
            )
            self.process.kill()
            self.process.join()
        self.signs.close()


class WorkerPlace:
    """A socket, and the worker that answers there. Who replaces it gets the socket, and the connections that wait."""

    def __init__(self, work: ProcessWork, listener: socket.socket, hanging: float) -> None:
        self._work = work
        self._listener = listener
        self._hanging = hanging
        self._was_ready = False  # any worker, ever
        self._wait = 0.0  # seconds, between the last two attempts to start one
        self._due: float | None = None  # when a worker that has ended is replaced
        self.worker = self.new_worker()

    def new_worker(self) -> WorkerProcess:
        """Start a process."""
        return WorkerProcess(self._work, self._listener)

    def take_over(self, successor: WorkerProcess) -> WorkerProcess:
        """Have a worker that is ready in place of the present one, which is returned."""
        before, self.worker = self.worker, successor
        self._due, self._wait = None, 0.0
        return before

    def look_after(self) -> None:
        """Replace a worker that has ended, or that hangs. Raises StartError when the first one could not start."""
        worker, now = self.worker, time.monotonic()
        worker.look()
        if self._due is not None:
            if now >= self._due:
                self._due, self.worker = None, self.new_worker()
            return
        if worker.is_ready:
            self._was_ready, self._wait = True, 0.0
        if worker.has_ended:
            what = f"ended with status {worker.process.exitcode}"
        elif worker.is_ready and now - worker.seen_at > self._hanging:
            what = f"gave no sign of life for {self._hanging:.0f} seconds, and was killed"
            worker.process.kill()
            worker.process.join()
        else:
            return
        worker.signs.close()
        if not worker.is_ready and worker.failed:
            if not self._was_ready:
                raise StartError(f"worker [{worker.pid}] {what} before it was ready; the log says why")
            self._wait = min(max(AGAIN, 2 * self._wait), AT_MOST)
        extra = {"event": "worker.lost", "worker": worker.pid}
        log.error("worker [%d] %s; another one starts in %.0f seconds", worker.pid, what, self._wait, extra=extra)
        self._due = now + self._wait


class Supervisor:
    """A worker for each socket.

    SIGHUP restarts the workers one after the other, each when its successor is ready. SIGINT and SIGTERM stop all.
    SIGTTIN and SIGTTOU do nothing: there are as many workers as sockets.
    """

    def __init__(
        self, work: ProcessWork, sockets: Sequence[socket.socket], *, patience: float, hanging: float = HANGING
    ) -> None:
        """`work` is what each process does. It is stopped by SIGTERM, and has `patience` seconds to end then."""
        self._work = work
        self._sockets = sockets
        self._patience = patience + KILLED_AFTER
        self._hanging = hanging
        self._places: list[WorkerPlace] = []
        self._to_restart: deque[WorkerPlace] = deque()
        self._successor: WorkerProcess | None = None  # of the worker at the first of them
        self._retired: WorkerProcess | None = None  # the one that was replaced last, until it has ended
        self._signals: deque[int] = deque()

    def run(self) -> None:
        """Look after the workers until stopped; then raise KeyboardInterrupt. From then on, signals are ignored.

        Raises StartError when one of the first workers could not start.
        """
        woken, wake = socket.socketpair()
        with woken, wake:
            woken.setblocking(False)
            wake.setblocking(False)

            def handle(number: int, _frame: FrameType | None) -> None:
                self._signals.append(number)
                with suppress(BlockingIOError):
                    wake.send(b".")

            for number in HANDLED:
                signal.signal(number, handle)
            try:
                for each in self._sockets:
                    self._places.append(WorkerPlace(self._work, each, self._hanging))
                while not self._is_stopped():
                    self._look_after()
                    self._wait(woken)
            finally:
                self._stop()
                ignore_signals()
        raise KeyboardInterrupt

    def _is_stopped(self) -> bool:
        """Take in the signals."""
        while self._signals:
            number = self._signals.popleft()
            if number in {signal.SIGINT, signal.SIGTERM}:
                return True
            if number == signal.SIGHUP and not self._to_restart:
                self._to_restart.extend(self._places)
        return False

    def _look_after(self) -> None:
        for place in self._places:
            place.look_after()
        if self._retired is not None:
            if not (self._retired.has_ended or self._retired.is_overdue(self._patience)):
                return
            self._retired.end(0)
            self._retired = None
        if self._to_restart:
            self._go_on_restarting(self._to_restart[0])

    def _go_on_restarting(self, place: WorkerPlace) -> None:
        if self._successor is None:
            self._successor = place.new_worker()
        successor = self._successor
        successor.look()
        if successor.is_ready:
            self._to_restart.popleft()
            self._successor = None
            self._retired = place.take_over(successor)
            self._retired.stop()
        elif successor.has_ended or time.monotonic() - successor.started_at > READY:
            successor.process.kill()
            successor.end(self._patience)
            self._to_restart.clear()
            self._successor = None
            log.error(
                "worker [%d] did not get ready; keeping worker [%d] and aborting the restart",
                successor.pid,
                place.worker.pid,
            )

    def _wait(self, woken: socket.socket) -> None:
        """Until something has happened, or some time has passed."""
        alive = [worker for worker in self._everyone() if not worker.has_ended]
        sentinels = [worker.process.sentinel for worker in alive]
        connection.wait([woken, *sentinels, *(worker.signs for worker in alive)], POLL)
        with suppress(BlockingIOError):
            woken.recv(1024)

    def _stop(self) -> None:
        """Stop all workers, and wait for their end."""
        for worker in self._everyone():
            worker.stop()
        end = time.monotonic() + self._patience
        for worker in self._everyone():
            worker.end(max(0.0, end - time.monotonic()))

    def _everyone(self) -> list[WorkerProcess]:
        others = [worker for worker in (self._successor, self._retired) if worker is not None]
        return [*(place.worker for place in self._places), *others]


def _begin(work: ProcessWork, listener: socket.socket, signs: Connection) -> None:
    """The main function of a worker process: SIGTERM stops it; a Ctrl-C does too, a closed terminal does not."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the server takes it
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    work(listener, signs)
