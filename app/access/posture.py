"""Where a service may listen without asking for keys, and which requests it refuses then."""

import logging
import socket
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

from app.access.refusals import ForbiddenError
from app.errors import StartError
from app.settings import Posture

log = logging.getLogger(__name__)


def is_loopback_address(address: str) -> bool:
    """Whether only this machine reaches an address: 127.0.0.0/8, ::1, and both as ::ffff:127.0.0.1."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.is_loopback


def check_host(posture: Posture, host: str, port: int, *, setting: str = "PQS_HOST") -> None:
    """Whether a service of this posture may listen there; to be called before it does.

    A host may be a name: all of its addresses count. Raises StartError, which names the ways out; `setting` is where
    the host came from.
    """
    if posture is Posture.LOOPBACK:
        try:
            found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError:
            return  # nothing can listen there, and whoever tries says why
        _check([str(address[0]) for *_, address in found], host, setting)
    elif posture is Posture.INSECURE:
        _warn(host, setting)


def check_sockets(posture: Posture, sockets: Iterable[socket.socket], *, setting: str = "PQS_HOST") -> None:
    """Whether a service of this posture may use sockets that listen already, such as inherited ones.

    Only this machine reaches a Unix socket. Raises StartError like check_host().
    """
    bound = [each for each in sockets if each.family != socket.AF_UNIX]
    addresses = [str(each.getsockname()[0]) for each in bound]
    if posture is Posture.LOOPBACK:
        _check(addresses, ", ".join(addresses), setting)
    elif posture is Posture.INSECURE:
        _warn(", ".join(addresses) or "a Unix socket", setting)


def _check(addresses: Sequence[str], host: str, setting: str) -> None:
    if not all(is_loopback_address(address) for address in addresses):
        raise StartError(
            f"{host or 'this address'} can be reached from other machines, and this service asks nobody for a key. "
            f"Three ways out: listen on 127.0.0.1 ({setting}); ask for keys (PQS_AUTH=required, and "
            "`pqs keys create`); or let everybody in, on purpose (PQS_AUTH=insecure)"
        )


def _warn(host: str, setting: str) -> None:
    may = "read, change and remove everything" if setting == "PQS_HOST" else "read the metrics"
    log.warning("PQS_AUTH=insecure: whoever reaches %s may %s", host, may)


@lru_cache(maxsize=1024)
def is_beyond(address: str | None) -> bool:
    """Whether one end of a connection, as ASGI names it, is an address that other machines have.

    A name says nothing, and neither does the path of a Unix socket: only addresses count.
    """
    try:
        ip_address((address or "").partition("%")[0])
    except ValueError:
        return False
    return not is_loopback_address(address or "")


def from_beyond() -> ForbiddenError:
    """The refusal of a request from beyond this machine: the server that runs this application was not asked to keep
    to loopback addresses, as `pqs serve` does at its start."""
    return ForbiddenError(
        "this service asks nobody for a key, and other machines reach the address that it listens on; start it with "
        "PQS_AUTH=required, and send a key, or let it listen on 127.0.0.1",
        {},
    )


def is_forwarding(name: bytes) -> bool:
    """Whether a header field of this name, in lower case, says that a proxy is in front."""
    return name == b"forwarded" or name.startswith(b"x-forwarded-")


def forwarded() -> ForbiddenError:
    """The refusal of a request that a proxy has passed on to a service that trusts this machine."""
    return ForbiddenError(
        "this service trusts everybody on its own machine, and a proxy in front makes everybody look like that; "
        "start it with PQS_AUTH=required, and send a key",
        {},
    )
