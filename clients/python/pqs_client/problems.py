"""The errors of calls, in one tree: a problem as the answer (RFC 9457), or no answer at all."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
import msgspec
from msgspec import Struct

from app.domain.positions import Position
from app.domain.registration import Registration
from app.domain.results import Result
from app.errors import Fault, PqsError
from app.wire.problems import ActionProblem, ForgottenProblem, GoneProblem, HeldProblem, StateProblem


class ClientError(PqsError):
    """The root of the client's errors."""


class ConnectionFailedError(ClientError):
    """No answer came: the service could not be reached, closed the connection, or took too long.

    `perhaps_done`: a request was sent, so the service may have carried it out.
    """

    def __init__(self, message: str, *, perhaps_done: bool) -> None:
        super().__init__(message)
        self.perhaps_done = perhaps_done


class TimedOutError(ConnectionFailedError):
    """The service was reached, and did not answer in time."""


class UnexpectedAnswerError(ClientError):
    """The answer is not one of this service, or not about the key that was asked for.

    The address is another server's, the releases do not match, or a proxy changes paths.
    """


class ProblemError(ClientError):
    """The service refused the call, with a reason.

    `status`, `type`, `title`, `detail` and `instance` are the members of RFC 9457. `errors` lists the faults of the
    input. `retry_after` is the wait that the service asks for, or None. `correlation_id` finds the request in the
    service's log.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        details = _decoded(response, _Details) or _Details()
        self.status = response.status_code
        self.type = details.type
        self.title = details.title or response.reason_phrase
        self.detail = details.detail
        self.instance = details.instance
        self.errors = details.errors or []
        self.retry_after = _retry_after(response)
        self.correlation_id = response.headers.get("x-correlation-id")
        super().__init__(f"{self.status} {self.title}" + f": {self.detail}" * bool(self.detail))


class UnreadableError(ProblemError):
    """400: the body is not JSON, or the cursor is damaged or belongs to another query."""


class UnauthenticatedError(ProblemError):
    """401: the service asks for a token, or the one that was sent does not count (any more)."""


class ForbiddenError(ProblemError):
    """403: the token lacks the right; `errors` points at the events of an array that it is lacking for."""


class NotFoundError(ProblemError):
    """404: there is no such entity, workflow or dead letter."""


class ConflictError(ProblemError):
    """409: the event's position cannot be compared with its row's, or another event holds it.

    `result` has the reason and the row's position; None if a proxy answered, not the service.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        self.result = _decoded(response, Result)

    @property
    def stands_at(self) -> Position | None:
        """The position of the entity's row; None if there is no row."""
        return self.result.stands_at if self.result else None


class EarlyError(ConflictError):
    """409: the event named by `previous` is missing. Send this event again after that one."""


class HeldError(ConflictError):
    """409: the entity's messages wait behind a dead letter, or the queue's retry failed again; `detail` says why.

    `entity_id` is the entity; None if a proxy answered. Retry or skip its queue (`DeadLetters.retry_held`).
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, HeldProblem)
        self.entity_id = problem.entity_id if problem else None


class ActionConflictError(ProblemError):
    """409: the commit's action was already applied with another state, as version `version` of its workflow."""

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, ActionProblem)
        self.version = problem.version if problem else None


class GoneError(ProblemError):
    """410: the change log does not go back so far; as ForgottenError, the entity was forgotten.

    `reason`, `oldest` and `snapshot` are of a token of the feed that is not good any more, else None.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, GoneProblem)
        self.reason = problem.reason if problem else None
        self.oldest = problem.oldest if problem else None
        self.snapshot = problem.snapshot if problem else None


class ForgottenError(GoneError):
    """410: the entity was forgotten, at `forgotten_at`; `permanent`: no event begins it anew."""

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, ForgottenProblem)
        self.forgotten_at = problem.forgotten_at if problem else None
        self.permanent = problem.permanent if problem else False


class PreconditionFailedError(ProblemError):
    """412: the workflow is at another version than the commit builds on.

    `current` is its row, from which the caller can compute again at once, and `actual_version` that row's version;
    both are None if there is no row. `expected_version` is the version that the commit builds on, None for no row.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, StateProblem)
        self.expected_version = problem.expected_version if problem else None
        self.actual_version = problem.actual_version if problem else None
        self.current = problem.current if problem else None


class TooLargeError(ProblemError):
    """413: the body is larger than the service accepts in one piece."""


class InvalidError(ProblemError):
    """422: the input is readable, but wrong; `errors` lists its faults."""


class UnavailableError(ProblemError):
    """503: the database is not available now. A write may have happened nevertheless."""


class LateError(ProblemError):
    """504: the service waited in vain. `current` is the entity's row as it is, None without one.

    `stands_at` is that row's position.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, _Late) or _Late()
        self.current = problem.current
        self.stands_at = problem.stands_at


class InterruptedStreamError(UnavailableError):
    """503 in the middle of a stream: its first `committed_lines` lines are in, and perhaps more."""

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        details = _decoded(response, _Details) or _Details()
        self.committed_lines = details.committed_lines or 0


class _Late(Struct):
    """The members of a late problem that are of an entity."""

    current: Registration | None = None
    stands_at: Position | None = None


class _Details(Struct):
    """Problem details with optional members: a proxy may write its own."""

    type: str = "about:blank"
    title: str = ""
    detail: str = ""
    instance: str = ""
    errors: list[Fault] | None = None
    committed_lines: int | None = None


T = TypeVar("T", bound=Struct)

_TYPES: dict[str, type[ProblemError]] = {
    "urn:pqs:problem:early": EarlyError,
    "urn:pqs:problem:action-conflict": ActionConflictError,
    "urn:pqs:problem:forgotten": ForgottenError,
    "urn:pqs:problem:held": HeldError,
    "urn:pqs:problem:late": LateError,
}
_STATUSES: dict[int, type[ProblemError]] = {
    400: UnreadableError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    412: PreconditionFailedError,
    413: TooLargeError,
    422: InvalidError,
    503: UnavailableError,
}


def problem_of(response: httpx.Response) -> ProblemError:
    """The exception for an answer with an error status: by its `type`, otherwise by its status.

    A proxy may answer with a body of its own; then only the status counts.
    """
    details = _decoded(response, _Details) or _Details()
    if details.committed_lines is not None:
        return InterruptedStreamError(response)
    return (_TYPES.get(details.type) or _STATUSES.get(response.status_code, ProblemError))(response)


def _decoded(response: httpx.Response, type_: type[T]) -> T | None:
    try:
        return msgspec.json.decode(response.content, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _retry_after(response: httpx.Response) -> timedelta | None:
    """`Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date; None if absent or unreadable."""
    given = response.headers.get("retry-after", "")
    if given.isascii() and given.isdigit():
        return timedelta(seconds=min(int(given), 10**9))
    try:
        return max(parsedate_to_datetime(given) - datetime.now(UTC), timedelta())
    except (ValueError, TypeError):
        return None
