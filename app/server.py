"""The processes that answer requests: uvicorn, on a socket that listens before anything else starts."""

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.api.metrics import SHARED_DIRECTORY
from app.errors import StartError
from app.settings import PREFIX, Settings

SHUTDOWN = 10  # seconds that open requests have to end
KEEP_ALIVE = 30  # seconds that an idle connection stays open


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises StartError, which names the address, where that can't be."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = "it is already in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise StartError(
            f"cannot listen on {host} port {port}: {reason}; choose another with --host and --port"
        ) from None
    with listener:
        yield listener


def export(settings: Settings) -> None:
    """Hand the settings down to the worker processes."""
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            os.environ[PREFIX + name.upper()] = str(getattr(value, "get_secret_value", lambda value=value: value)())


def run(settings: Settings, listener: socket.socket) -> None:
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
        _Server(config).run(sockets=[listener])
        return
    with tempfile.TemporaryDirectory(prefix="pqs-metrics-") as shared:
        os.environ[SHARED_DIRECTORY] = shared
        Multiprocess(config, sockets=[listener]).run()


class _Server(uvicorn.Server):
    """A server that closes what the lifespan opened even when a second Ctrl-C has cut its open requests off."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking requests, let the open ones end, and end the lifespan."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()
