"""More connections than a process may have, from clients that say nothing."""

import resource
import socket
from contextlib import suppress
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from tests.databases import new_database
from tests.edge.conftest import address_of
from tests.processes import serving, until

SILENT = 1100
DESCRIPTORS = 300  # that the service may open


def ask(address: tuple[str, int], path: str) -> bytes:
    """The first bytes of the answer to a request on a connection of its own."""
    with socket.create_connection(address, timeout=10) as connection:
        received = b""
        with suppress(ConnectionError):  # a connection that is turned away is closed without a look at its request
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while piece := connection.recv(65_536):
                received += piece
        return received


def test_silent_connections_lock_nobody_out(tmp_path: Path) -> None:
    """With 1,100 silent connections and few descriptors, health checks are answered, the rest is told 503."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))  # inherited by the service
    try:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(new_database()) as url,
            serving(tmp_path, database_url=url, log_level="warning") as service,
        ):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, SILENT + 500), hard))
            address = address_of(service)
            silent = [socket.create_connection(address, timeout=10) for _ in range(SILENT)]
            try:
                held = len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
                until(lambda: ask(address, "/livez").startswith(b"HTTP/1.1 200 "), "an answer to a health check")
                other = ask(address, "/v1/state-counts")
            finally:
                for connection in silent:
                    connection.close()
            until(lambda: ask(address, "/v1/state-counts").startswith(b"HTTP/1.1 200 "), "room after they left")
            log = service.log
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert held < DESCRIPTORS
    assert other.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in other
    assert b"\r\nx-correlation-id: " in other
    assert log.count("PQS_MAX_CONNECTIONS") == 1
