"""A live service for tests with real clients, and a way to talk to it in bytes."""

import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from anyio.from_thread import start_blocking_portal

from tests.databases import new_database
from tests.processes import Service, serving

PATIENCE = 10.0  # seconds for what must come
QUIET = 0.3  # seconds after which nothing more is expected
HEAD = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in a process of its own, on a database of its own."""
    folder = tmp_path_factory.mktemp("edge")
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(new_database()) as url,
        serving(folder, database_url=url, log_level="error") as service,
    ):
        yield service


def address_of(service: Service) -> tuple[str, int]:
    """The host and port of a service."""
    parts = urlsplit(service.url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


class Exchange:
    """The answers on a connection: the statuses in order, the headers of each, and whether it was closed."""

    def __init__(self, received: bytes, *, closed: bool) -> None:
        self.received = received
        self.closed = closed
        self.statuses = [int(status) for status, _ in HEAD.findall(received)]
        self.heads = [
            {
                name.lower(): value
                for name, _, value in (line.partition(": ") for line in head.decode("latin-1").splitlines())
            }
            for _, head in HEAD.findall(received)
        ]


def exchange(service: Service, *segments: bytes, answers: int, half_close: bool = False) -> Exchange:
    """Send each segment separately; read until this many answers have come and no more bytes arrive."""
    received, closed = b"", False
    pause = 0.02 if len(segments) < 10 else 0.002  # seconds; where there are many, some may be read together
    with socket.create_connection(address_of(service), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):  # closed meanwhile: to be seen below
            for segment in segments:
                connection.sendall(segment)
                with suppress(TimeoutError):  # until the server has read it
                    connection.settimeout(pause)
                    received += connection.recv(65_536)
                connection.settimeout(PATIENCE)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError, ConnectionError):
            while True:
                connection.settimeout(PATIENCE if len(HEAD.findall(received)) < answers else QUIET)
                piece = connection.recv(65_536)
                if not piece:
                    closed = True
                    break
                received += piece
    return Exchange(received, closed=closed)
