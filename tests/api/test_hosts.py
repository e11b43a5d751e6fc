"""Host names that the service answers to."""

import pytest

from app.api.hosts import Hosts, is_loopback_host
from app.errors import MisdirectedError, StartError

LOCAL = Hosts.of(None, "127.0.0.1")


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:8000",
        b"LOCALHOST",
        b"localhost.",
        b"127.0.0.1:1",
        b"[::1]",
        b"[::1]:8000",
        b"[::1]:",
    ],
)
def test_loopback_names_are_allowed_with_any_port(host: bytes) -> None:
    """Without a setting, the service answers to the names of the loopback interface, with any port."""
    assert LOCAL.allow(host)
    assert LOCAL.allow(host)


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"evil.example:8000",
        b"",
        b":8000",
        b"localhost:8000:9",
        b"localhost.evil.example",
        b"localhost@evil",
        b"127.0.0.1 ",
        b"[::1",
        b"::1",
        b"x" * 16_000,
        b"\xff",
        b"localhost\x00",
    ],
)
def test_other_names_are_not(host: bytes) -> None:
    """Any other name, or text that is not a name, is refused, also the second time."""
    for _ in range(2):
        with pytest.raises(MisdirectedError):
            LOCAL.check(host)


def test_a_request_without_host_is_let_through() -> None:
    """A request of HTTP/1.0 without `Host` is accepted: no browser sends one."""
    LOCAL.check(None)


def test_the_address_listened_on_is_a_name() -> None:
    """A loopback address in PQS_HOST is an allowed name; an IPv6 address comes in brackets."""
    assert Hosts.of(None, "127.0.0.9").allow(b"127.0.0.9:80")
    assert Hosts.of("", "::1").allow(b"[::1]:80")


def test_the_setting_replaces_the_default() -> None:
    """PQS_ALLOWED_HOSTS lists names separated by commas; ports in it are ignored."""
    hosts = Hosts.of(" pqs.example , [2001:db8::7]:443,10.0.0.7", "0.0.0.0")
    assert [hosts.allow(each) for each in (b"PQS.example:8443", b"[2001:DB8::7]", b"10.0.0.7", b"localhost")] == [
        True,
        True,
        True,
        False,
    ]


def test_a_star_allows_every_name() -> None:
    """`*` allows every name."""
    assert Hosts.of("*", "0.0.0.0").allow(b"evil.example")


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.7", "pqs.example"])
def test_the_setting_is_needed_where_others_can_come_in(address: str) -> None:
    """On an address beyond the loopback interface the service does not start without the setting."""
    with pytest.raises(StartError, match="PQS_ALLOWED_HOSTS"):
        Hosts.of(None, address)


@pytest.mark.parametrize("text", ["http://pqs.example", "pqs.example/", "a b", "ä.example", "*.example"])
def test_what_is_not_a_name_is_refused(text: str) -> None:
    """A setting with text that cannot be a name is an error that quotes it."""
    with pytest.raises(StartError, match="PQS_ALLOWED_HOSTS"):
        Hosts.of(text, "127.0.0.1")


def test_what_is_remembered_has_a_bound() -> None:
    """The cache of allowed spellings has a bound."""
    hosts = Hosts.of(None, "127.0.0.1")
    assert all(hosts.allow(b"localhost:%d" % port) for port in range(1000))
    assert len(hosts._seen) <= 64


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("x", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    """An address on the loopback interface is reachable from this machine only."""
    assert is_loopback_host(host) is expected
