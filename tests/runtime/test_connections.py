"""The budget of open connections."""

import logging

import pytest

from app.runtime.connections import HEADROOM, RESERVE, Admission, Connections, descriptor_limit, peer_of

OPEN, HEALTH_ONLY, REFUSED = Admission


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def connections(most: int, descriptors: int | None = None) -> Connections:
    """A connection budget on a clock that stands still."""
    return Connections(most, clock=Clock(), descriptors=descriptors)


def test_a_peer_has_a_quarter() -> None:
    """One address gets a quarter of the connections, then a few that serve health checks only, then none."""
    budget = connections(400)
    given = [budget.admit("192.0.2.1") for _ in range(120)]
    assert given == [OPEN] * 100 + [HEALTH_ONLY] * 4 + [REFUSED] * 16
    assert budget.admit("192.0.2.2") is OPEN


def test_a_full_process_keeps_a_reserve() -> None:
    """A full process keeps a reserve of connections for health checks, open to every address."""
    budget = connections(400)
    given = [budget.admit(f"192.0.2.{number}") for number in range(400)]
    assert given == [OPEN] * (400 - RESERVE) + [HEALTH_ONLY] * RESERVE
    assert budget.admit("192.0.2.250") is REFUSED


def test_what_ends_makes_room() -> None:
    """A connection that ends frees its place for its address and for the process; a refused one frees nothing."""
    budget = connections(400)
    given = [("192.0.2.1", budget.admit("192.0.2.1")) for _ in range(110)]
    for host, admission in given:
        budget.release(host, admission)
    assert [budget.admit("192.0.2.1") for _ in range(100)] == [OPEN] * 100
    for _ in range(100):
        budget.release("192.0.2.1", OPEN)
    assert not budget._peers
    assert not budget._reserved_peers


def test_the_descriptor_limit_bounds_all_of_it() -> None:
    """All connections, the reserve included, are bounded by the process's open files less those it needs itself."""
    budget = connections(10_000, descriptors=1024)
    given = [budget.admit(f"2001:db8:0:{number:x}::1") for number in range(2000)]
    assert sum(each is not REFUSED for each in given) == 1024 - HEADROOM
    assert connections(10_000, descriptors=None).most == 10_000
    assert connections(10_000, descriptors=10).most == 1
    assert connections(10_000, descriptors=descriptor_limit()).most <= 10_000


def test_a_socket_without_addresses_knows_no_peers() -> None:
    """Connections through a Unix socket share no address: only the bound of the process counts."""
    budget = connections(400)
    assert [budget.admit(None) for _ in range(384)] == [OPEN] * 384
    for _ in range(384):
        budget.release(None, OPEN)
    assert budget.admit("") is OPEN


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::"),
        ("2001:db8:0:1::1", "2001:db8:0:1::"),
        ("fe80::1%eth0", "fe80::"),
        ("nonsense:", None),
        (None, None),
    ],
)
def test_peers(host: str | None, peer: str | None) -> None:
    """The addresses of one IPv6 network count as one client."""
    assert peer_of(host) == peer


def test_it_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """The first refused connection is logged at once; the next minute's line counts the others."""
    clock = Clock()
    budget = Connections(8, clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            budget.admit("192.0.2.1")
        assert caplog.messages[0] == (
            "192.0.2.1 has 2 connections, as many as one address may have (PQS_MAX_CONNECTIONS); "
            "since the last such line 1 were turned away"
        )
        assert len(caplog.messages) == 1
        clock.now = 60.0
        budget.admit("192.0.2.1")
        assert caplog.messages[1].endswith("since the last such line 48 were turned away")
        budget.admit("192.0.2.2")
        for number in range(10):
            budget.admit(f"198.51.100.{number}")
        clock.now = 120.0
        budget.admit("198.51.100.99")
        assert caplog.messages[2].startswith("4 connections are open, of 8 that may be (PQS_MAX_CONNECTIONS)")
