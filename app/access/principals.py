"""The caller and the caller's rights: scopes, domains and workflow prefixes. Pure: no clock, no I/O."""

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

EVERY_DOMAIN = "*"
EVERY_KEY = ""  # the prefix that every workflow key has


class Scope(StrEnum):
    """A right that a call demands."""

    EVENTS_WRITE = "events:write"
    ENTITIES_READ = "entities:read"
    WORKFLOWS_READ = "workflows:read"
    WORKFLOWS_WRITE = "workflows:write"
    OPERATIONS_READ = "operations:read"
    OPERATIONS_WRITE = "operations:write"
    METRICS_READ = "metrics:read"

    __hash__ = str.__hash__  # equal as text, hashed as text: Enum's own takes ten times as long


# The rights of the calls that come thousands of times a second: a member is slow to get from its class.
EVENTS_WRITE, ENTITIES_READ = Scope.EVENTS_WRITE, Scope.ENTITIES_READ
WORKFLOWS_READ, WORKFLOWS_WRITE = Scope.WORKFLOWS_READ, Scope.WORKFLOWS_WRITE


class Grant(Struct, frozen=True):
    """Rights: scopes, the domains and workflow prefixes that they cover, and an end.

    `expires_at` is in seconds since 1970; None means without an end. A grant without domains covers none,
    and one without prefixes covers no workflow: nothing is granted by leaving something out.
    """

    scopes: frozenset[Scope]
    domains: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    expires_at: float | None = None

    def allows_domain(self, domain: str) -> bool:
        """Whether the domain is covered. Names are compared to the letter."""
        domains = self.domains
        return EVERY_DOMAIN in domains or domain in domains

    def allows_every_domain(self) -> bool:
        """Whether all domains are covered, those to come included: feeds over all of them and operations need it."""
        return EVERY_DOMAIN in self.domains

    def allows_key(self, workflow_key: str) -> bool:
        """Whether the workflow is covered."""
        return workflow_key.startswith(self.prefixes)


class Principal(Struct, frozen=True):
    """A caller whose identity is established.

    `name` is printable, goes to the log and the audit, and is unique: two principals of one name share their limits.
    `rate` (units a second) and `burst` (units) are the caller's own limits; None means the default ones.
    """

    name: str
    grant: Grant
    rate: float | None = None
    burst: float | None = None
    unlimited: bool = False


EVERYTHING = Grant(frozenset(Scope), frozenset({EVERY_DOMAIN}), (EVERY_KEY,))
# The caller of a service that asks nobody for a key.
ANYONE = Principal("anyone", EVERYTHING, unlimited=True)


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes among these names. What is no scope of this service grants nothing."""
    return frozenset(Scope(name) for name in names if name in _KNOWN)


_KNOWN = {scope.value for scope in Scope}
