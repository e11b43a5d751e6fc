"""The processes that answer requests: uvicorn, on sockets that listen before anything else starts."""

import errno
import itertools
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.errors import StartError
from app.runtime.metrics import SHARED_DIRECTORY
from app.settings import PREFIX, Settings

SHUTDOWN = 10  # seconds that open requests have to end
BACKLOG = 2048  # connections that wait for a worker to take them, at each socket
KEEP_ALIVE = 30  # seconds that an idle connection stays open


@contextmanager
def listening(host: str, port: int, workers: int) -> Iterator[list[socket.socket]]:
    """A socket that listens for each worker: its own where the kernel shares connections out, else one for all.

    Where there is one for all, whoever is awake takes what comes: of 64 connections at once often more than 50, and
    it keeps them. Raises StartError, which names the address, where nothing can listen.
    """
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            sockets = [stack.enter_context(each) for each in _sockets(family, address[:2], workers)]
        except OSError as error:
            reason = "it is already in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise StartError(
                f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port"
            ) from None
        yield sockets


def export(settings: Settings) -> None:
    """Hand the settings down to the worker processes."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(getattr(value, "get_secret_value", lambda value=value: value)())


def run(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    """Answer requests until stopped, in as many processes as are set. They read the exported settings."""
    config = uvicorn.Config(
        "app.main:from_environment",
        factory=True,
        workers=settings.workers,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        http="app.api.hot:HotProtocol",  # by name: this process may serve nothing itself
        ws="none",
        proxy_headers=False,  # nothing here depends on who asks, or by which scheme
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN,
    )
    if settings.workers == 1:
        _Server(config).run(sockets=list(sockets))
        return
    with tempfile.TemporaryDirectory(prefix="pqs-metrics-") as shared:
        os.environ[SHARED_DIRECTORY] = shared
        _Supervisor(config, sockets).run()


def _sockets(family: int, address: tuple[object, ...], workers: int) -> Iterator[socket.socket]:
    # One without the option cannot be there beside others that listen, whether they have it or not.
    alone = socket.create_server(address, family=family, backlog=BACKLOG)
    if workers == 1 or sys.platform != "linux":  # elsewhere, the last of several would get all connections
        yield from itertools.repeat(alone, workers)
        return
    with alone:
        address = alone.getsockname()[:2]
    for _ in range(workers):
        yield socket.create_server(address, family=family, backlog=BACKLOG, reuse_port=True)


class _Server(uvicorn.Server):
    """A server that closes what the lifespan opened even when a second Ctrl-C has cut its open requests off."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, let the open ones end, and end the lifespan."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


class _Supervisor(Multiprocess):
    """uvicorn's supervisor of workers, each of which has a socket of its own.

    It is supervisor of one place after the other: who replaces a worker has its socket, and what waits there.
    """

    def __init__(self, config: uvicorn.Config, sockets: Sequence[socket.socket]) -> None:
        super().__init__(config, [])
        self._places = sockets

    def init_processes(self) -> None:
        """Start the workers."""
        for place in range(len(self._places)):
            with self._only(place):
                super().init_processes()

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have died, or hang."""
        for place in range(len(self._places)):
            with self._only(place):
                super().keep_subprocess_alive()

    def restart_all(self) -> None:
        """Replace all workers, each when its successor is ready; one that does not get ready is the end of it."""
        for place, worker in enumerate(self.processes):
            with self._only(place):
                super().restart_all()
            if self.processes[place] is worker:
                return

    def handle_ttin(self) -> None:
        """Do nothing: there are as many workers as sockets."""

    def handle_ttou(self) -> None:
        """Do nothing."""

    @contextmanager
    def _only(self, place: int) -> Iterator[None]:
        """Be the supervisor of one worker."""
        everyone = self.processes
        self.processes, self.processes_num, self.sockets = everyone[place : place + 1], 1, [self._places[place]]
        try:
            yield
        finally:
            everyone[place : place + 1] = self.processes
            self.processes = everyone
