"""How many connections are open: a bound for the process and one for each peer, and a reserve for health checks.

Connections that are silent, or that send half a request, cost a descriptor each. Without a bound one client opens as
many as there are, and nobody else gets in. The last few of a process are kept for those who only ask after its
health, so that a supervisor does not take a full process for a dead one.
"""

import ipaddress
import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from enum import Enum

from app.runtime.framing import FramingError, Head

log = logging.getLogger(__name__)

HEADROOM = 64  # descriptors for all that is not a client's connection: database, log, bus, temporary files
RESERVE = 16  # connections that are kept for health checks, of each process
HEALTH_SECONDS = 2.0  # until a request for the health has begun, and for its header section
QUARTER = 4  # a peer address has one of so many parts
LOG_EVERY = 60.0  # seconds
TURNED_AWAY = "this process has as many connections as it may have, or your address has its share of them"


class Admission(Enum):
    """What a new connection may do."""

    OPEN = "open"  # any request
    HEALTH_ONLY = "health only"  # ask after the health, within a few seconds; anything else is answered with 503
    REFUSED = "refused"  # nothing: it is answered with 503, and closed


class Connections:
    """The open connections of this process. Each `admit` that did not refuse is followed by one `release`."""

    def __init__(
        self,
        most: int,
        *,
        descriptors: int | None = None,
        clock: Callable[[], float],
        health: frozenset[bytes] = frozenset(),
    ) -> None:
        """`most` is PQS_MAX_CONNECTIONS, `descriptors` how many files this process may open, None for no limit.

        `clock` gives seconds that never go back, as time.monotonic does. `health` are the paths that the reserve is
        for.
        """
        self.health = health
        self.draining = False  # every answer ends its connection: the process is about to stop
        self.most = most if descriptors is None else max(1, min(most, descriptors - HEADROOM))
        self.reserve = min(RESERVE, self.most // 2)
        self.most_of_a_peer = max(1, self.most // QUARTER)
        self._clock = clock
        self._open = 0
        self._reserved = 0
        self._peers: Counter[str] = Counter()
        self._reserved_peers: Counter[str] = Counter()
        self._turned_away = 0
        self._logged_at = -LOG_EVERY

    def admit(self, host: str | None) -> Admission:
        """What a new connection from this address may do. None is a peer without an address, as on a Unix socket."""
        peer = peer_of(host)
        is_full = self._open >= self.most - self.reserve
        if not is_full and (peer is None or self._peers[peer] < self.most_of_a_peer):
            self._open += 1
            if peer is not None:
                self._peers[peer] += 1
            return Admission.OPEN
        self._turn_away(peer, is_full=is_full)
        if self._reserved >= self.reserve:
            return Admission.REFUSED
        if peer is not None and self._reserved_peers[peer] >= max(1, self.reserve // QUARTER):
            return Admission.REFUSED
        self._reserved += 1
        if peer is not None:
            self._reserved_peers[peer] += 1
        return Admission.HEALTH_ONLY

    def release(self, host: str | None, admission: Admission) -> None:
        """Count out a connection that was admitted in this way. A refused connection was never counted in."""
        if admission is Admission.REFUSED:
            return
        peer = peer_of(host)
        if admission is Admission.OPEN:
            self._open -= 1
            peers = self._peers
        else:
            self._reserved -= 1
            peers = self._reserved_peers
        if peer is not None:
            peers[peer] -= 1
            if peers[peer] == 0:
                del peers[peer]  # as many entries as there are open connections, not as there were peers

    def _turn_away(self, peer: str | None, *, is_full: bool) -> None:
        self._turned_away += 1
        now = self._clock()
        if now - self._logged_at < LOG_EVERY:
            return
        what = (
            f"{self._open:,} connections are open, of {self.most:,} that may be"
            if is_full
            else f"{peer} has {self._peers[peer or '']:,} connections, as many as one address may have"
        )
        log.warning("%s (PQS_MAX_CONNECTIONS); since the last such line %d were turned away", what, self._turned_away)
        self._turned_away = 0
        self._logged_at = now


class ConnectionPlace:
    """The place of one connection among the others, until it is given back."""

    def __init__(self, connections: Connections, peername: object) -> None:
        """`peername` is the transport's: host and port, or something else."""
        self._connections = connections
        self._host = str(peername[0]) if isinstance(peername, tuple) else None
        self._admission = connections.admit(self._host)
        self.is_refused = self._admission is Admission.REFUSED
        self.is_reserved = self._admission is Admission.HEALTH_ONLY

    def check(self, head: Head) -> None:
        """Let one request after the health in, on a place of the reserve. Raises FramingError for any other."""
        head.keep_alive = False
        if head.target.partition(b"?")[0] not in self._connections.health:
            raise turned_away()

    def give_back(self) -> None:
        """The connection is no more. A second call changes nothing."""
        self._connections.release(self._host, self._admission)
        self._admission = Admission.REFUSED


UNBOUNDED = Connections(sys.maxsize, clock=time.monotonic)  # of an application that says nothing of it


def turned_away() -> FramingError:
    """What is said to a connection, or to a request, that there is no place for."""
    return FramingError(503, TURNED_AWAY)


def name_of(peername: object) -> str:
    """The address of a client as logs have it; `-` at a Unix socket."""
    return str(peername[0]) if isinstance(peername, tuple) else "-"


def peer_of(host: str | None) -> str | None:
    """Whom an address counts for: an IPv4 address for itself, an IPv6 address for its network of 64 bits.

    A client has all addresses of such a network to choose from. What is not an address counts for nobody.
    """
    if not host:
        return None
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return None
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64))


def descriptor_limit() -> int | None:
    """How many files this process may open; None for no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
