"""What can go wrong with a call, in one tree: an answer that is a problem (RFC 9457), or no answer at all."""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
import msgspec
from msgspec import Struct

from app.answers import ActionProblem, StateProblem
from app.domain.positions import Position
from app.domain.results import Result
from app.errors import Fault, PqsError


class ClientError(PqsError):
    """The root of what the client raises."""


class ConnectionFailedError(ClientError):
    """No answer came: the service could not be reached, or went away, or took too long.

    `perhaps_done`: a request had gone out, so the service may have acted on it all the same.
    """

    def __init__(self, message: str, *, perhaps_done: bool) -> None:
        super().__init__(message)
        self.perhaps_done = perhaps_done


class UnexpectedAnswerError(ClientError):
    """The answer is not what this service says: the address is another server's, or its release is not ours."""


class ProblemError(ClientError):
    """The service refused the call, and says why.

    `status`, `type`, `title`, `detail` and `instance` are the members of RFC 9457, and `errors` what is wrong with
    the input, and where. `retry_after` is what the service asks to wait, or None. `correlation_id` finds the request
    in the service's log.
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


class NotFoundError(ProblemError):
    """404: there is no such entity, workflow or dead letter."""


class ConflictError(ProblemError):
    """409: the event's position cannot be compared with its row's, or another event holds it.

    `result` says so, and where the row stands; None when it was not the service that answered.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        self.result = _decoded(response, Result)

    @property
    def stands_at(self) -> Position | None:
        """Where the entity's row stands; None when there is no row."""
        return self.result.stands_at if self.result else None


class EarlyError(ConflictError):
    """409: the event that its `previous` names is missing. Send it again after that one."""


class ActionConflictError(ProblemError):
    """409: the commit's action was applied before, with another state: as version `version` of its workflow."""

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, ActionProblem)
        self.version = problem.version if problem else None


class PreconditionFailedError(ProblemError):
    """412: the workflow is at another version than the commit builds on.

    `current` is its row, from which the caller can compute again at once, and `actual_version` that row's version;
    both are None when there is no row. `expected_version` is what the commit builds on, None for no row.
    """

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        problem = _decoded(response, StateProblem)
        self.expected_version = problem.expected_version if problem else None
        self.actual_version = problem.actual_version if problem else None
        self.current = problem.current if problem else None


class TooLargeError(ProblemError):
    """413: the body is larger than the service takes in one piece."""


class InvalidError(ProblemError):
    """422: the input is readable and wrong; `errors` says what and where."""


class UnavailableError(ProblemError):
    """503: the database cannot be asked now. A write may have happened all the same."""


class InterruptedStreamError(UnavailableError):
    """503 in the middle of a stream: its first `committed_lines` lines are in, and more may be."""

    def __init__(self, response: httpx.Response) -> None:
        """`response` has been read."""
        super().__init__(response)
        details = _decoded(response, _Details) or _Details()
        self.committed_lines = details.committed_lines or 0


class _Details(Struct):
    """Problem details in which anything may be missing: a proxy writes its own."""

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
}
_STATUSES: dict[int, type[ProblemError]] = {
    400: UnreadableError,
    404: NotFoundError,
    409: ConflictError,
    412: PreconditionFailedError,
    413: TooLargeError,
    422: InvalidError,
    503: UnavailableError,
}


def problem_of(response: httpx.Response) -> ProblemError:
    """An answer with an error's status as an exception: by its `type`, else by its status.

    Whatever stands between may answer as well, with a body of its own making: then the status says it all.
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
    """`Retry-After` (RFC 9110, section 10.2.3), seconds or a date; None without one that can be read."""
    given = response.headers.get("retry-after", "")
    if given.isascii() and given.isdigit():
        return timedelta(seconds=min(int(given), 10**9))
    try:
        return max(parsedate_to_datetime(given) - datetime.now(UTC), timedelta())
    except (ValueError, TypeError):
        return None
