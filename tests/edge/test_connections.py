"""More silent connections than a process may open."""

import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from tests.certificates import Authority
from tests.databases import new_database
from tests.edge.conftest import address_of
from tests.processes import Service, serving, until

SILENT = 1100
DESCRIPTORS = 300  # that the service may open


def ask(address: tuple[str, int], path: str) -> bytes:
    """The first bytes of the answer to a request on its own connection."""
    with socket.create_connection(address, timeout=10) as connection:
        received = b""
        with suppress(ConnectionError):  # a connection that is turned away is closed without a look at its request
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while piece := connection.recv(65_536):
                received += piece
        return received


def secure(address: tuple[str, int], path: str, context: ssl.SSLContext, source: str) -> bytes:
    """The answer over TLS to a request from this source address; b"" if the connection is refused."""
    with (
        suppress(OSError),
        socket.create_connection(address, timeout=10, source_address=(source, 0)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while piece := connection.recv(65_536):
            received += piece
        return received
    return b""


def test_silent_connections_lock_nobody_out(tmp_path: Path) -> None:
    """With 1,100 silent connections and few descriptors, health checks are answered; other requests get 503."""
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


@contextmanager
def few_descriptors(folder: Path, **settings: object) -> Iterator[Service]:
    """A service with a low limit of descriptors; this process has a higher one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))  # inherited by the service
    try:
        with (
            start_blocking_portal() as portal,
            portal.wrap_async_context_manager(new_database()) as url,
            serving(folder, database_url=url, log_level="warning", **settings) as service,
        ):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, SILENT + 500), hard))
            yield service
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_half_open_handshakes_lock_nobody_out(tmp_path: Path) -> None:
    """1,100 unfinished TLS handshakes use up one address's share only, and only for a while.

    Other addresses are answered at once, and that address again once the handshakes have timed out.
    """
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    cert, key = authority.issue(tmp_path / "certificate", "service")
    with few_descriptors(tmp_path, tls_cert=cert, tls_key=key) as service:
        address = address_of(service)
        half: list[socket.socket] = []
        try:
            for number in range(SILENT):
                half.append(socket.create_connection(address, timeout=10))
                with suppress(ConnectionError):  # it is turned away already
                    half[-1].sendall(b"\x16\x03\x01\x02\x00\x01"[: number % 7])
            held = len(list(Path(f"/proc/{service.pid}/fd").iterdir()))
            other = secure(address, "/v1/state-counts", context, "127.0.0.2")
            own = secure(address, "/v1/state-counts", context, "127.0.0.1")
            until(
                lambda: secure(address, "/v1/state-counts", context, "127.0.0.1").startswith(b"HTTP/1.1 200 "),
                "an end of the handshakes",
                poll=0.5,
            )
        finally:
            for connection in half:
                connection.close()
        log = service.log
    assert held < DESCRIPTORS
    assert other.startswith(b"HTTP/1.1 200 ")
    assert own == b"" or own.startswith(b"HTTP/1.1 503 ")
    assert log.count("PQS_MAX_CONNECTIONS") == 1
    assert "Traceback" not in log
