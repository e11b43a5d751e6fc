"""What a call demands of its caller: declared beside its route, checked here, and written into OpenAPI from there.

The middleware has established the caller by then (`entry.py`). A scope is checked before FastAPI reads the request;
domains and workflow keys are checked by the call itself, before anything is read or joined.
"""

from typing import Any

from fastapi import Depends, Request

from app.access import rights
from app.access.limits import FULL_SCAN, weight_of_array
from app.access.principals import Principal, Scope
from app.access.refusals import ForbiddenError
from app.api.service import Service, service_of
from app.domain.events import Event
from app.errors import Fault

__all__ = [
    "FULL_SCAN",
    "OPEN",
    "Needs",
    "admit",
    "caller_of",
    "check_again",
    "check_domains",
    "needs",
    "permit",
    "weight_of_array",
]

FOR_ALL_DOMAINS = frozenset({Scope.OPERATIONS_READ, Scope.OPERATIONS_WRITE})  # scopes that count for all domains only


class Needs:
    """A dependency of a route: the scope that its caller needs, or None for a call that is open to everybody.

    The call costs `weight` units of the caller's rate; None says that the call charges for itself.
    """

    def __init__(self, scope: Scope | None, weight: float | None = 1.0) -> None:
        self.scope = scope
        self.weight = weight

    async def __call__(self, request: Request) -> None:
        """Raises ForbiddenError for a caller without the scope, and LimitedError for one that is too fast."""
        if self.scope is None:
            return
        principal = caller_of(request)
        check = rights.every_domain if self.scope in FOR_ALL_DOMAINS else rights.scope
        refusal = check(principal, self.scope)
        if refusal is not None:
            raise refusal
        if self.weight is not None:
            admit(service_of(request), principal, None, self.weight)


def needs(scope: Scope | None, weight: float | None = 1.0) -> list[Any]:
    """The `dependencies` of a route whose callers need this scope."""
    return [Depends(Needs(scope, weight))]


OPEN = needs(None)


def caller_of(request: Request) -> Principal:
    """The caller of this request."""
    principal: Principal = request.scope["principal"]
    return principal


async def check_again(request: Request) -> Principal:
    """The caller of a request that takes long, checked as at its beginning: its key may have been revoked meanwhile.

    Raises AuthError, and UnavailableError when nobody can tell.
    """
    found = await service_of(request).access.guard.authenticate(request.scope["headers"])
    if not isinstance(found, Principal):
        raise found
    request.scope["principal"] = found
    return found


def admit(service: Service, principal: Principal, refusal: ForbiddenError | None, weight: float = 1.0) -> None:
    """Raises the refusal, if there is one; else charges `weight` units, and raises LimitedError when they lack."""
    if refusal is not None:
        raise refusal
    limited = service.access.limits.take(principal, weight)
    if limited is not None:
        raise limited


def permit(refusal: ForbiddenError | None) -> None:
    """Raises the refusal, if there is one."""
    if refusal is not None:
        raise refusal


def check_domains(principal: Principal, events: list[Event]) -> None:
    """Whether the caller may send events of all these domains.

    Raises ForbiddenError, with a pointer to the first event of each domain that it may not write.
    """
    if rights.every_domain(principal, Scope.EVENTS_WRITE) is None:
        return
    faults: dict[str, Fault] = {}
    first: ForbiddenError | None = None
    for index, event in enumerate(events):
        refusal = rights.domain(principal, Scope.EVENTS_WRITE, event.domain)
        if refusal is not None and event.domain not in faults:
            first = first or refusal
            faults[event.domain] = Fault(f"#/{index}/domain", str(refusal))
    if first is not None:
        first.faults = list(faults.values())
        raise first
