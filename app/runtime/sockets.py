"""The sockets that a service listens on, before anything else starts."""

import errno
import itertools
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from app.errors import StartError

BACKLOG = 2048  # connections that wait for a worker to take them, at each socket


def shown(listener: socket.socket) -> str:
    """Host and port of a socket, as in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def listening(
    host: str, port: int, workers: int, *, options: str = "--host and --port"
) -> Iterator[list[socket.socket]]:
    """A socket that listens for each worker: its own where the kernel shares connections out, else one for all.

    Where there is one for all, whoever is awake takes what comes: of 64 connections at once often more than 50, and
    it keeps them. Raises StartError, which names the address, and the `options` for another one, where
    nothing can listen.
    """
    with ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            sockets = [stack.enter_context(each) for each in _sockets(family, address[:2], workers)]
        except OSError as error:
            reason = "it is already in use" if error.errno == errno.EADDRINUSE else error.strerror
            raise StartError(
                f"cannot listen on {host} port {port}: {reason}; choose another with {options}"
            ) from None
        yield sockets


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
