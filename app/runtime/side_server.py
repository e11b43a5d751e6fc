"""A server beside a worker, on the worker's own event loop: it answers while the worker works."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn

from app.runtime.processes import KEEP_ALIVE, Server
from app.runtime.protocol import HttpProtocol
from app.runtime.tls import ServerTls

PATIENCE = 1  # seconds that open requests have to end when the worker has ended


class SideServer(Server):
    """A server that leaves the signals to the worker."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


@asynccontextmanager
async def answering(app: object, listener: socket.socket, tls: ServerTls | None) -> AsyncIterator[None]:
    """Answer requests from this socket by an ASGI application, as long as the context lasts."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn's type of applications knows no class
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        http=HttpProtocol,
        ws="none",
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=PATIENCE,
    )
    server = SideServer(config, tls)
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
