"""Refusals by name, each with the headers that its answer carries (RFC 6750, section 3)."""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

from app.access.principals import Scope
from app.errors import Fault, PqsError

REALM = 'Bearer realm="pqs"'


class AuthError(PqsError):
    """A call that is refused because of its caller. `status`, `type` and `title` are the problem document's.

    `faults` point at the items of an array that the caller has no right to.
    """

    status: ClassVar[int]
    type: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, message: str, headers: Mapping[str, str]) -> None:
        super().__init__(message)
        self.headers = headers
        self.faults: list[Fault] | None = None


class UnauthenticatedError(AuthError):
    """Nobody knows the caller: there is no token, or it is not a good one."""

    status = 401
    type = "urn:pqs:problem:unauthenticated"
    title = "Unauthenticated"


class ForbiddenError(AuthError):
    """The caller is known and lacks the right."""

    status = 403
    type = "urn:pqs:problem:forbidden"
    title = "Forbidden"


class LimitedError(AuthError):
    """The caller has used up the rate that it is granted. Nothing was done; the same call is good later."""

    status = 429
    type = "urn:pqs:problem:rate-limited"
    title = "Too Many Requests"

    def __init__(self, message: str, headers: Mapping[str, str], retry_after: timedelta) -> None:
        super().__init__(message, headers)
        self.retry_after = retry_after


def no_token() -> UnauthenticatedError:
    """A call without a token."""
    return UnauthenticatedError(
        "this call needs a key or a token: send it as `Authorization: Bearer …`", {"WWW-Authenticate": REALM}
    )


def bad_token(reason: str) -> UnauthenticatedError:
    """A call with a token that does not count. The reason says nothing of the token itself."""
    return UnauthenticatedError(reason, {"WWW-Authenticate": f'{REALM}, error="invalid_token"'})


def lacks(scope: Scope, what: str | None = None) -> ForbiddenError:
    """A call whose caller lacks the scope, or has it for other domains or workflows only: `what` names which."""
    reason = f"this call needs the scope {scope}" + (f" for {what}" if what else "")
    return ForbiddenError(reason, {"WWW-Authenticate": f'{REALM}, error="insufficient_scope", scope="{scope}"'})
