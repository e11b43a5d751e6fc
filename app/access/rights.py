"""The checks that a call makes of its caller, before anything is read or joined.

Each returns the refusal, or None: an array turns it into a fault with a pointer, a stream into the outcome of a line,
and every other call raises it.
"""

from app.access.principals import EVERY_DOMAIN, EVERY_KEY, Principal, Scope
from app.access.refusals import ForbiddenError, lacks


def scope(principal: Principal, needed: Scope) -> ForbiddenError | None:
    """Whether the caller has the scope."""
    return None if needed in principal.grant.scopes else lacks(needed)


def domain(principal: Principal, needed: Scope, domain: str) -> ForbiddenError | None:
    """Whether the caller has the scope for a domain. The answer is the same whether the domain holds rows or not."""
    grant = principal.grant
    if needed not in grant.scopes:
        return lacks(needed)
    if EVERY_DOMAIN in grant.domains or grant.allows_domain(domain):  # the first also within: it saves a call
        return None
    return lacks(needed, f"the domain {domain!r}")


def every_domain(principal: Principal, needed: Scope) -> ForbiddenError | None:
    """Whether the caller has the scope for all domains: for feeds over all of them, and for operations."""
    grant = principal.grant
    if needed not in grant.scopes:
        return lacks(needed)
    return None if grant.allows_every_domain() else lacks(needed, "every domain (`*`)")


def prefixes(principal: Principal) -> list[str] | None:
    """The beginnings of the workflow keys that the caller may read in a list; None for all."""
    covered = principal.grant.prefixes
    return None if EVERY_KEY in covered else list(covered)


def workflow(principal: Principal, needed: Scope, key: str) -> ForbiddenError | None:
    """Whether the caller has the scope for a workflow."""
    grant = principal.grant
    if needed not in grant.scopes:
        return lacks(needed)
    return None if grant.allows_key(key) else lacks(needed, "this workflow key")
