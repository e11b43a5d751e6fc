"""Errors as problem details (RFC 9457), and the HTTP status of each error type of `app/errors.py`."""

import logging
from collections.abc import MutableMapping
from http import HTTPStatus
from math import ceil
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Struct
from starlette.exceptions import HTTPException

from app.access.refusals import AuthError, ForbiddenError, LimitedError, UnauthenticatedError
from app.api import context
from app.api.negotiation import Conditions, etag_of
from app.api.schemas import encode
from app.domain.results import HeldResult, Outcome, Result
from app.domain.workflows import StateConflict
from app.errors import (
    ActionConflictError,
    BadCursorError,
    BadTokenError,
    ChangesGoneError,
    ChangesOffError,
    Fault,
    ForeignMessageError,
    ForeignOriginError,
    ForgottenError,
    HistoryGoneError,
    IngestInterruptedError,
    InUseError,
    InvalidInputError,
    MisdirectedError,
    NotFoundError,
    PqsError,
    PreconditionFailedError,
    PreconditionRequiredError,
    RefusedValuesError,
    TooLargeError,
    TooManyFaultsError,
    TooManyFullScansError,
    UnavailableError,
    UnreadableError,
    UnsupportedCodingError,
    UnsupportedMediaError,
)
from app.feed.late import LateError, OtherTrackError
from app.store.held import HeldError
from app.store.quotas import QuotaExceededError
from app.wire.problems import (
    ActionProblem,
    ForgottenProblem,
    GoneProblem,
    HeldProblem,
    HistoryGoneProblem,
    InterruptedProblem,
    LateProblem,
    OrderProblem,
    Problem,
    StateProblem,
    TrackProblem,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
NO_TYPE = "about:blank"  # RFC 9457, section 4.2.1: the problem is no more than its status
RETRY_EARLY = "1"  # seconds; the missing event is most likely on its way

# Types of our own, with their titles.
EARLY = ("urn:pqs:problem:early", "The event is early")
CONFLICT = ("urn:pqs:problem:conflict", "The event conflicts with its entity's row")
STATE_CONFLICT = ("urn:pqs:problem:state-conflict", "The workflow is at another version")
CHANGES_GONE = ("urn:pqs:problem:changes-gone", "The changes after this token are not in the log")
HISTORY_GONE = ("urn:pqs:problem:history-gone", "The change log does not go back so far")
LATE = ("urn:pqs:problem:late", "What was waited for has not come")
OTHER_TRACK = ("urn:pqs:problem:other-track", "The entity's row has no sequence")
ENTITY_HELD = ("urn:pqs:problem:held", "The entity is held behind a dead letter")
FORGOTTEN = ("urn:pqs:problem:forgotten", "The entity was forgotten")
TOO_MANY_FAULTS = ("urn:pqs:problem:too-many-faults", "Too many lines are faults")
ACTION_CONFLICT = ("urn:pqs:problem:action-conflict", "The action was already applied, with another state")

STATUS: dict[type[PqsError], HTTPStatus] = {
    UnreadableError: HTTPStatus.BAD_REQUEST,
    BadCursorError: HTTPStatus.BAD_REQUEST,
    BadTokenError: HTTPStatus.BAD_REQUEST,
    ChangesGoneError: HTTPStatus.GONE,
    HistoryGoneError: HTTPStatus.GONE,
    ChangesOffError: HTTPStatus.NOT_IMPLEMENTED,
    ForeignMessageError: HTTPStatus.UNPROCESSABLE_ENTITY,
    InvalidInputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RefusedValuesError: HTTPStatus.UNPROCESSABLE_ENTITY,
    TooManyFaultsError: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFoundError: HTTPStatus.NOT_FOUND,
    ForgottenError: HTTPStatus.GONE,
    QuotaExceededError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedMediaError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ActionConflictError: HTTPStatus.CONFLICT,
    OtherTrackError: HTTPStatus.CONFLICT,
    LateError: HTTPStatus.GATEWAY_TIMEOUT,
    InUseError: HTTPStatus.CONFLICT,
    HeldError: HTTPStatus.CONFLICT,
    PreconditionFailedError: HTTPStatus.PRECONDITION_FAILED,
    PreconditionRequiredError: HTTPStatus.PRECONDITION_REQUIRED,
    UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    ForbiddenError: HTTPStatus.FORBIDDEN,
    LimitedError: HTTPStatus.TOO_MANY_REQUESTS,
    ForeignOriginError: HTTPStatus.FORBIDDEN,
    MisdirectedError: HTTPStatus.MISDIRECTED_REQUEST,
    TooManyFullScansError: HTTPStatus.TOO_MANY_REQUESTS,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}

CODINGS = "gzip, identity"  # content codings that request bodies may have

# RFC 9110's names, where Python's differ between its versions.
TITLES = {413: "Content Too Large", 414: "URI Too Long", 422: "Unprocessable Content"}


def title(status: HTTPStatus) -> str:
    """The title of a problem that its status says all of."""
    return TITLES.get(status, status.phrase)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""
    app.add_exception_handler(PqsError, _on_our_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameter)
    app.add_exception_handler(HTTPException, _on_http_error)


def _respond(body: Struct, status: HTTPStatus, headers: dict[str, str] | None = None) -> Response:
    """A problem as a response. Its sentence goes into the log line of the request, too."""
    context.reason.set(getattr(body, "detail", None))
    return Response(encode(body), status, headers, media_type=MEDIA_TYPE)


def _problem(
    request: Request,
    status: HTTPStatus,
    detail: str,
    *,
    faults: list[Fault] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """A problem with the members of RFC 9457, and `errors` if there are faults."""
    body = Problem(NO_TYPE, title(status), status, detail, _instance_of(request), faults)
    return _respond(body, status, headers)


def queue_of(entity_id: UUID) -> str:
    """The path of a held entity's queue."""
    return f"/v1/dead-letters/entities/{entity_id}"


def _held(entity_id: UUID, said: str, instance: str) -> Response:
    status = HTTPStatus.CONFLICT
    return _respond(HeldProblem(*ENTITY_HELD, status, said, instance, entity_id, queue_of(entity_id)), status)


def order_problem(result: Result, instance: str) -> Response:
    """The answer to an event that is early or in conflict, or whose entity is held: a problem.

    It has the fields of the result, or the path of the queue.
    """
    if isinstance(result, HeldResult):
        return _held(result.entity_id, result.reason or "", instance)
    early = result.outcome is Outcome.EARLY
    status = HTTPStatus.CONFLICT
    body = OrderProblem(
        *(EARLY if early else CONFLICT),
        status,
        result.reason or "",
        instance,
        **msgspec.structs.asdict(result),
    )
    return _respond(body, status, {"Retry-After": RETRY_EARLY} if early else None)


def state_problem(conflict: StateConflict, conditions: Conditions, instance: str, *, with_row: bool) -> Response:
    """The answer to a commit that builds on another version than its conditions allow.

    The present row is in it only `with_row`: a caller that may write need not be one that may read.
    """
    expected_version = conditions.version
    actual = f"the workflow is at version {conflict.actual_version}" if conflict.current else "there is no workflow"
    expected = {None: "the headers allow other versions only", 0: "a new one was expected"}
    wanted = expected.get(expected_version, f"version {expected_version} was expected")
    status = HTTPStatus.PRECONDITION_FAILED
    body = StateProblem(
        *STATE_CONFLICT,
        status,
        f"{actual}, but {wanted}: nothing was written{conditions.weak_note}",
        instance,
        expected_version or None,
        conflict.actual_version,
        conflict.current if with_row else None,
    )
    return _respond(body, status, {"ETag": etag_of(conflict.current)} if conflict.current else None)


def _instance_of(request: Request) -> str:
    """The path of the request. Not request.url.path, which ends at an escaped `?` or `#`."""
    return quote(request.scope["path"])


def _retry_after(error: UnavailableError) -> dict[str, str]:
    """The header with the time to wait before a retry: whole seconds, at least one (RFC 9110, section 10.2.3)."""
    return {"Retry-After": str(max(1, ceil(error.retry_after.total_seconds())))}


def answer_to(scope: MutableMapping[str, Any], error: Exception) -> Response:
    """The answer to any error. That to an unforeseen error says little; the log has the traceback."""
    request = Request(scope)
    if isinstance(error, PqsError) and any(cls in STATUS for cls in type(error).__mro__):
        return _to_ours(request, error)
    log.error("a bug: %s %s", request.method, request.url.path, exc_info=error)
    detail = "an error inside the service: its log has the details under the X-Correlation-ID of this answer"
    return _problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, detail)


async def _on_our_error(request: Request, error: Exception) -> Response:
    return answer_to(request.scope, error)


def _to_ours(request: Request, error: PqsError) -> Response:
    status = next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
    headers = _retry_after(error) if isinstance(error, UnavailableError) else None
    if isinstance(error, PreconditionFailedError) and error.etag:
        headers = {"ETag": error.etag}
    if isinstance(error, UnsupportedCodingError):
        headers = {"Accept-Encoding": CODINGS}  # RFC 9110, section 12.5.3
    if isinstance(error, RefusedValuesError):
        error = InvalidInputError([Fault("#", str(error))])
    if isinstance(error, IngestInterruptedError):
        body = InterruptedProblem(
            NO_TYPE,
            title(status),
            status,
            str(error),
            _instance_of(request),
            error.committed_lines,
        )
        return _respond(body, status, headers)
    if isinstance(error, TooManyFaultsError):
        broken_off = InterruptedProblem(
            *TOO_MANY_FAULTS,
            status,
            f"{error}: the rest was not read; the first {error.committed_lines:,} lines are in, but for their faults",
            _instance_of(request),
            error.committed_lines,
        )
        return _respond(broken_off, status)
    if isinstance(error, ActionConflictError):
        conflict = ActionProblem(
            *ACTION_CONFLICT,
            status,
            str(error),
            _instance_of(request),
            error.action_id,
            error.version,
        )
        return _respond(conflict, status)
    if isinstance(error, HeldError):
        return _held(error.entity_id, str(error), _instance_of(request))
    if isinstance(error, OtherTrackError):
        other = TrackProblem(*OTHER_TRACK, status, str(error), _instance_of(request), error.stands_at)
        return _respond(other, status)
    if isinstance(error, LateError):
        return _respond(_late(request, error, status), status)
    if isinstance(error, ForgottenError):
        forgotten = ForgottenProblem(
            *FORGOTTEN,
            status,
            str(error),
            _instance_of(request),
            error.entity_id,
            error.domain,
            error.forgotten_at,
            error.permanent,
        )
        return _respond(forgotten, status)
    if isinstance(error, ChangesGoneError):
        return _respond(gone(request, error), status)
    if isinstance(error, HistoryGoneError):
        as_of = request.query_params.get("as_of", "")
        gone_by = HistoryGoneProblem(*HISTORY_GONE, status, str(error), _instance_of(request), as_of)
        return _respond(gone_by, status)
    if isinstance(error, AuthError):
        refusal = Problem(error.type, error.title, status, str(error), _instance_of(request), error.faults)
        return _respond(refusal, status, dict(error.headers))
    faults = error.faults if isinstance(error, InvalidInputError) else None
    return _problem(request, status, _summary(error, faults), faults=faults, headers=headers)


def _late(request: Request, error: LateError, status: HTTPStatus) -> LateProblem:
    current = error.current
    stands_at = None if current is None else current.position
    marks = None if error.watermarks is None else list(error.watermarks)
    return LateProblem(*LATE, status, str(error), _instance_of(request), current, stands_at, marks)


def gone(request: Request, error: ChangesGoneError) -> GoneProblem:
    """The problem of a follower whose token is not good any more: with it the ways to begin anew."""
    filters = [
        (name, value)
        for name, value in request.query_params.multi_items()
        if name not in {"after", "wait", "limit", "snapshot"}
    ]
    snapshot = f"{_instance_of(request)}?{urlencode([*filters, ('snapshot', 'true')])}"
    status = HTTPStatus.GONE
    return GoneProblem(*CHANGES_GONE, status, str(error), _instance_of(request), error.reason, error.oldest, snapshot)


def _summary(error: PqsError, faults: list[Fault] | None) -> str:
    """One sentence, however many faults there are."""
    if faults is None:
        return str(error)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0].pointer}: {faults[0].detail}{more}"


async def _on_bad_parameter(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    faults = []
    for wrong in error.errors():
        where = "/".join(str(step) for step in wrong["loc"])
        if wrong["type"] == "extra_forbidden":
            detail = "unknown parameter"
        else:
            detail = str(wrong["msg"]).removeprefix("Value error, ")
            detail = detail[0].lower() + detail[1:]
        faults.append(Fault(f"#/{where}", detail))
    return answer_to(request.scope, InvalidInputError(faults))


async def _on_http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.NOT_FOUND:
        detail = f"there is nothing at {request.url.path}; /docs lists all calls"
    elif status is HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = request.app.allowed(request.scope["path"]) or ""
        detail = f"this path does not accept {request.method}" + (f"; it accepts {allowed}" if allowed else "")
        return _problem(request, status, detail, headers={"Allow": allowed})
    else:
        detail = str(error.detail)
    return _problem(request, status, detail, headers=dict(error.headers or {}))
