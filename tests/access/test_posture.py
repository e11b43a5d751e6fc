"""The posture of a start: where a service that asks nobody for a key may listen."""

import logging
import socket
from pathlib import Path

import pytest

from app.access.posture import check_host, check_sockets, is_beyond, is_forwarding, is_loopback_address
from app.errors import StartError
from app.settings import Posture

WAYS_OUT = ("PQS_HOST", "PQS_AUTH=required", "PQS_AUTH=insecure")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("128.0.0.1", False),
        ("fe80::1%eth0", False),
        ("::1%lo", True),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_an_address_is_loopback_or_not(address: str, expected: bool) -> None:
    """IPv4, IPv6 and one in the other; what is no address is not."""
    assert is_loopback_address(address) is expected


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
@pytest.mark.parametrize("posture", list(Posture))
def test_loopback_needs_no_key(host: str, posture: Posture) -> None:
    """Every posture may listen there."""
    check_host(posture, host, 0)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "::ffff:192.0.2.1"])
def test_beyond_loopback_the_start_is_refused(host: str) -> None:
    """The one line names the three ways out; with either of the other postures the start is allowed."""
    with pytest.raises(StartError) as refused:
        check_host(Posture.LOOPBACK, host, 8000)
    assert all(way in str(refused.value) for way in WAYS_OUT)
    assert "\n" not in str(refused.value)
    check_host(Posture.REQUIRED, host, 8000)
    check_host(Posture.INSECURE, host, 8000)


def test_all_addresses_of_a_name_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that stands for this machine and for another address is refused."""

    def getaddrinfo(*_: object, **__: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(2, 1, 6, "", ("127.0.0.1", 0)), (2, 1, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(StartError):
        check_host(Posture.LOOPBACK, "node.example", 8000)


def test_sockets_that_listen_already_are_checked(tmp_path: Path) -> None:
    """A Unix socket is within this machine; what listens for all addresses is not."""
    with socket.socket(socket.AF_UNIX) as unix, socket.socket() as inner, socket.socket() as outer:
        unix.bind(str(tmp_path / "s"))
        inner.bind(("127.0.0.1", 0))
        outer.bind(("0.0.0.0", 0))
        check_sockets(Posture.LOOPBACK, [unix, inner])
        check_sockets(Posture.REQUIRED, [unix, inner, outer])
        with pytest.raises(StartError, match=r"^127\.0\.0\.1, 0\.0\.0\.0 can be reached"):
            check_sockets(Posture.LOOPBACK, [unix, inner, outer])


def test_an_open_service_warns_at_each_start(caplog: pytest.LogCaptureFixture) -> None:
    """In one line that names the address."""
    caplog.set_level(logging.WARNING)
    check_host(Posture.INSECURE, "0.0.0.0", 8000)
    check_host(Posture.REQUIRED, "0.0.0.0", 8000)
    assert [record.getMessage() for record in caplog.records] == [
        "PQS_AUTH=insecure: whoever reaches 0.0.0.0 may read, change and remove everything"
    ]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("10.0.0.7", True),
        ("0.0.0.0", True),
        ("::", True),
        ("fe80::1%eth0", True),
        ("::ffff:10.0.0.7", True),
        ("localhost", False),
        ("testserver", False),
        ("/run/pqs.sock", False),
        ("", False),
        (None, False),
    ],
)
def test_which_ends_of_a_connection_are_beyond_this_machine(end: str | None, *, expected: bool) -> None:
    """Addresses that other machines have; names and paths say nothing."""
    assert is_beyond(end) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"forwarded", True),
        (b"x-forwarded-for", True),
        (b"x-forwarded-anything", True),
        (b"x-forwarded", False),
        (b"forward", False),
    ],
)
def test_which_fields_say_that_a_proxy_is_in_front(name: bytes, expected: bool) -> None:
    """Forwarded (RFC 7239) and all that begin with X-Forwarded-."""
    assert is_forwarding(name) is expected
