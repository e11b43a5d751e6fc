"""A node as a service of Consul: its names, address, mark and check. Pure.

https://developer.hashicorp.com/consul/api-docs/agent/service has the fields; names follow RFC 1035, section 2.3.1, as
Consul's DNS requires.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from msgspec import Struct

from app.domain.intents import DeregisterService, RegisterService
from app.domain.registration import Registration
from app.settings import Settings

MARK, DOMAIN, VERSION, NODE_TYPE = "registered_by", "domain", "version", "node_type"  # keys of Meta
LONGEST_LABEL = 63  # characters of a DNS label
DIGEST = 8  # characters that tell fitted names apart
# Consul refuses these addresses, because nobody can connect to them.
NOWHERE = {"0.0.0.0", "::", "[::]"}  # noqa: S104 - nothing listens here
HIGHEST_PORT = 65_535

_LABEL = re.compile(rf"[A-Za-z0-9]([A-Za-z0-9-]{{0,{LONGEST_LABEL - 2}}}[A-Za-z0-9])?")
_UNFIT = re.compile(r"[^A-Za-z0-9]+")
_HOST = re.compile(r"[!-.0-~]{1,253}")
_ADDRESS_AND_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^:]+):(?P<port>[0-9]{1,5})")


class Profile(Struct, frozen=True):
    """How nodes are registered.

    `mark` is in the Meta of every service of this installation. `address` and `port` are paths into a node's
    capabilities; without `port`, the address is followed by a colon and the port. The check is critical when it was
    not renewed for `ttl`, and Consul removes a service that was critical for `deregister_after`.
    """

    mark: str = "pqs"
    address: tuple[str, ...] = ("address",)
    port: tuple[str, ...] | None = ("port",)
    ttl: timedelta = timedelta(seconds=90)
    deregister_after: timedelta = timedelta(minutes=10)


def profile_of(settings: Settings) -> Profile:
    """How these settings register nodes."""
    address, _, port = settings.consul_address_from.partition(",")
    return Profile(
        mark=settings.consul_mark,
        address=tuple(address.split(".")),
        port=tuple(port.split(".")) if port else None,
        ttl=timedelta(seconds=settings.consul_ttl),
        deregister_after=timedelta(seconds=settings.consul_remove_after),
    )


def id_of(node: RegisterService | DeregisterService | Registration) -> str:
    """The id of a node's service."""
    return f"{node.domain}.{node.entity_id}"


def check_of(service_id: str) -> str:
    """The id of the check of a service: the one that Consul itself would choose."""
    return f"service:{service_id}"


def entity_of(service_id: str, domain: str) -> UUID | None:
    """The entity of a service in `domain`, or None if no entity has this id."""
    try:
        return UUID(service_id.removeprefix(f"{domain}."))
    except ValueError:
        return None


def name_of(node_type: str) -> str:
    """The node type, if it is a DNS label. Otherwise one made of it; different types have different labels."""
    if _LABEL.fullmatch(node_type):
        return node_type
    digest = hashlib.sha256(node_type.encode()).hexdigest()[:DIGEST]
    kept = _UNFIT.sub("-", node_type).strip("-")[: LONGEST_LABEL - DIGEST - 1].rstrip("-")
    return f"{kept or 'node'}-{digest}"


def address_of(capabilities: Mapping[str, object], profile: Profile) -> tuple[str | None, int | None]:
    """The address and the port that the node names; None for one that is missing, or that nobody could use."""
    host, port = _found(capabilities, profile.address), None
    if profile.port is not None:
        port = _found(capabilities, profile.port)
    elif isinstance(host, str) and (both := _ADDRESS_AND_PORT.fullmatch(host)) is not None:
        host, port = both["host"], both["port"]
    return _host(host), _port(port)


def _found(capabilities: Mapping[str, object], path: Sequence[str]) -> object:
    found: object = capabilities
    for name in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _host(given: object) -> str | None:
    if not isinstance(given, str) or given in NOWHERE or _HOST.fullmatch(given) is None:
        return None
    return given[1:-1] if given.startswith("[") and given.endswith("]") else given


def _port(given: object) -> int | None:
    if isinstance(given, str) and re.fullmatch("[0-9]{1,5}", given):
        given = int(given)
    if isinstance(given, int) and not isinstance(given, bool) and 0 < given <= HIGHEST_PORT:
        return given
    return None


class Description(Struct, frozen=True):
    """The part of a service that follows from the node's data: two that are equal need no call."""

    name: str
    tags: tuple[str, ...]
    address: str
    port: int
    meta: dict[str, str]


def described(node: RegisterService, profile: Profile) -> Description:
    """The node's description, without its version: that rises with each heartbeat."""
    address, port = address_of(node.capabilities, profile)
    name = name_of(node.node_type)
    meta = {MARK: profile.mark, DOMAIN: node.domain}
    if name != node.node_type:
        meta[NODE_TYPE] = node.node_type
    return Description(name, node.tags, address or "", port or 0, meta)


def body_of(node: RegisterService, profile: Profile) -> dict[str, object]:
    """The body that registers a node. Its check begins as passing only for a node that is active."""
    description, service_id = described(node, profile), id_of(node)
    body: dict[str, object] = {
        "ID": service_id,
        "Name": description.name,
        "Tags": list(description.tags),
        "Meta": description.meta | {VERSION: str(node.version)},
        "Check": {
            "CheckID": check_of(service_id),
            "Name": "liveness",
            "TTL": _duration(profile.ttl),
            "Status": "passing" if node.passing else "critical",
            "DeregisterCriticalServiceAfter": _duration(profile.deregister_after),
        },
    }
    if description.address:
        body["Address"] = description.address
    if description.port:
        body["Port"] = description.port
    return body


def _duration(time: timedelta) -> str:
    """A duration as Go writes it."""
    return f"{round(time.total_seconds() * 1000)}ms"
