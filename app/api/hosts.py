"""Which names this service answers to: `Host` must be one of them (RFC 9110, section 7.4).

A page in a browser can point a name of its own at 127.0.0.1 and would then be of one origin with the service (DNS
rebinding). It cannot choose what `Host` says, so a service that answers only to its own names is out of its reach.
"""

import re
from collections.abc import Iterable

from app.access import posture
from app.errors import MisdirectedError, StartError

ANY_HOST = "*"
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
REMEMBERED = 64  # spellings of `Host` that were found to be allowed

_PORT = re.compile(r":[0-9]*\Z")
_NAME = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9._~-]+")  # an IPv6 address in brackets, or a name or IPv4 address


class Hosts:
    """The names that a request may be for, in any spelling; the port does not count."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises StartError for what is not the name of a host, and not `*`, which stands for all names."""
        wanted = [name.strip() for name in names]
        self._any = ANY_HOST in wanted
        self._names = frozenset(_name_of(name) for name in wanted if name and name != ANY_HOST)
        self._seen: set[bytes] = set()

    @classmethod
    def of(cls, allowed: str | None, listening_on: str) -> "Hosts":
        """Of PQS_ALLOWED_HOSTS, separated by commas; without it, the loopback names and the address listened on.

        Raises StartError where the setting is wrong, and where it is missing though others can reach the service.
        """
        if allowed is not None and allowed.strip():
            return cls(allowed.split(","))
        if not is_loopback_host(listening_on):
            raise StartError(
                f"PQS_HOST={listening_on} lets other machines in, so PQS_ALLOWED_HOSTS must say by which names: "
                "separated by commas, or * for all"
            )
        return cls((*LOOPBACK, bracketed(listening_on)))

    def allow(self, host: bytes) -> bool:
        """Whether `host`, the value of a `Host` field, is one of the names. Linear in its length."""
        if self._any or host in self._seen:
            return True
        if _PORT.sub("", host.decode("latin-1")).lower().removesuffix(".") not in self._names:
            return False
        if len(self._seen) < REMEMBERED:  # clients choose the port and the case: what is kept has a bound
            self._seen.add(host)
        return True

    def check(self, host: bytes | None) -> None:
        """Raises MisdirectedError for a name that is not allowed. None, as HTTP/1.0 may have it, is let through."""
        if host is not None and not self.allow(host):
            raise MisdirectedError(
                f"this service does not answer to {host.decode('latin-1')!r}; PQS_ALLOWED_HOSTS lists its names"
            )


def is_loopback_host(host: str) -> bool:
    """Whether only this machine can reach a service that listens on `host`."""
    return host.lower().removesuffix(".") == "localhost" or posture.is_loopback_address(host.strip("[]"))


def bracketed(host: str) -> str:
    """A host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _name_of(text: str) -> str:
    name = _PORT.sub("", bracketed(text) if text.count(":") > 1 else text).lower().removesuffix(".")
    if _NAME.fullmatch(name) is None:
        raise StartError(
            f"PQS_ALLOWED_HOSTS: a host such as pqs.example, 10.0.0.7 or [::1] was expected, not {text!r}"
        )
    return name
