"""The processes that answer requests: this one alone, or workers that it looks after."""

import asyncio
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import uvicorn

from app.concurrency.worker import working
from app.runtime.connections import UNBOUNDED, ConnectionPlace
from app.runtime.metrics import SHARED_DIRECTORY
from app.runtime.protocol import HttpProtocol
from app.runtime.signals import write_stacks_on_signal
from app.runtime.sockets import BACKLOG
from app.runtime.supervisor import Supervisor
from app.runtime.tls import ServerTls
from app.runtime.tls_door import TlsDoor
from app.runtime.waits import HEAD_SECONDS
from app.settings import PREFIX, Settings, read_settings

log = logging.getLogger(__name__)

SHUTDOWN = 10  # seconds that open requests have to end
KEEP_ALIVE = 30  # seconds that an idle connection stays open
TICK = 0.1  # seconds between two ticks of uvicorn's server
TICKS = 864_000  # after which it counts from 0
SIGN_OF_LIFE = 1  # seconds between two, each sent by the event loop of a worker


def export(settings: Settings) -> None:
    """Hand the settings down to the worker processes."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if value is not None and getattr(settings, f"{name}_file", None) is None:  # else they read the file
            os.environ[PREFIX + name.upper()] = str(getattr(value, "get_secret_value", lambda value=value: value)())


def run(settings: Settings, sockets: Sequence[socket.socket]) -> None:
    """Answer requests until stopped, in as many processes as are set. They read the exported settings.

    Raises KeyboardInterrupt when a signal has stopped it, and StartError when the workers do not start.
    """
    write_stacks_on_signal()
    if settings.workers == 1:
        _serve(settings, sockets[0], None)
        return
    with tempfile.TemporaryDirectory(prefix="pqs-metrics-") as shared:
        os.environ[SHARED_DIRECTORY] = shared
        Supervisor(work, sockets, patience=SHUTDOWN + settings.drain).run()


def work(listener: socket.socket, parent: Connection) -> None:
    """What a worker process does: answer requests from one socket until it is stopped, and send signs of life."""
    write_stacks_on_signal()
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        threading.Thread(target=_end_with, args=[supervisor], daemon=True).start()

    def sign() -> None:
        with suppress(OSError):  # the parent is gone; see above
            parent.send_bytes(b".")

    with suppress(KeyboardInterrupt):  # uvicorn raises it again, once all is closed
        _serve(read_settings(), listener, sign)


def _serve(settings: Settings, listener: socket.socket, sign: Callable[[], None] | None) -> None:
    async def notify() -> None:
        if sign is not None:
            sign()

    config = uvicorn.Config(
        "app.main:from_environment",  # by name: a supervisor serves nothing itself, and does not import it
        factory=True,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        http=HttpProtocol,
        ws="none",
        proxy_headers=False,  # nothing here depends on who asks, or by which scheme
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN,
        timeout_notify=SIGN_OF_LIFE,
        callback_notify=notify,
    )
    Server(config, server_tls(settings), drain=settings.drain).run(sockets=[listener])


def server_tls(settings: Settings) -> ServerTls | None:
    """The TLS of the service; None where it speaks plain HTTP. Raises StartError for files that cannot be used."""
    if settings.tls_cert is None or settings.tls_key is None:  # one is not set without the other
        return None
    return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


class Server(uvicorn.Server):
    """A server that bounds TLS handshakes, in time and number, and takes over renewed certificates.

    It closes what the lifespan opened even when a second Ctrl-C has cut its open requests off.
    """

    def __init__(self, config: uvicorn.Config, tls: ServerTls | None, *, drain: float = 0.0) -> None:
        """`drain` is the time in seconds between the signal to stop and the stop."""
        super().__init__(config)
        self._drain = drain
        self._tls = tls
        self._watching = AsyncExitStack()
        self._doors: list[TlsDoor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the lifespan, then take requests.

        uvicorn itself would give each handshake a minute, and would know nothing of a connection before its end.
        """
        if self._tls is None:
            await super().startup(sockets)
            return
        await super().startup([])
        await self._watching.enter_async_context(working(self._tls))
        for each in sockets or ():
            each.listen(BACKLOG)
            budget = getattr(self.config.loaded_app, "connections", UNBOUNDED)
            door = TlsDoor(each, self._tls.context, budget, self._protocol, handshake=HEAD_SECONDS)
            self._doors.append(door)
            self.servers.append(door)  # type: ignore[arg-type]  # it has the methods that uvicorn calls

    async def main_loop(self) -> None:
        """Answer requests until a signal comes, and then for the time that balancers need to look elsewhere.

        A second Ctrl-C ends that time.
        """
        await super().main_loop()
        if not self._drain:
            return
        log.info("draining for %g s", self._drain, extra={"event": "draining", "seconds": self._drain})
        if (drain := getattr(self.config.loaded_app, "drain", None)) is not None:
            drain()
        end, tick = time.monotonic() + self._drain, 0
        while time.monotonic() < end and not self.force_exit:
            tick = (tick + 1) % TICKS
            await self.on_tick(tick)  # the date of answers, and the signs of life
            await asyncio.sleep(TICK)

    def _protocol(self, place: ConnectionPlace) -> HttpProtocol:
        return HttpProtocol(self.config, self.server_state, self.lifespan.state, place=place)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, let the open ones end, those that wait at once, and end the lifespan."""
        for door in self._doors:  # before uvicorn closes their sockets
            door.close()
            await door.wait_closed()
        await self._watching.aclose()
        if (stop := getattr(self.config.loaded_app, "stop", None)) is not None:
            stop()
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()


def _end_with(supervisor: BaseProcess) -> None:
    """End this worker when the process that started it was killed, so that its port is free again."""
    supervisor.join()
    shutil.rmtree(os.environ.get(SHARED_DIRECTORY, ""), ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
