"""What a command says and returns when a call fails."""

from http import HTTPStatus

from app.cli.statuses import CONFLICTING, FAILED, NOT_FOUND, TIMED_OUT, UNAVAILABLE
from app.cli.terminal import plain
from pqs_client import (
    ClientError,
    ConnectionFailedError,
    LateError,
    ProblemError,
    TimedOutError,
    UnauthenticatedError,
)

_STATUSES: dict[int, int] = {
    HTTPStatus.NOT_FOUND: NOT_FOUND,
    HTTPStatus.GONE: NOT_FOUND,
    HTTPStatus.CONFLICT: CONFLICTING,
    HTTPStatus.PRECONDITION_FAILED: CONFLICTING,
    HTTPStatus.TOO_MANY_REQUESTS: UNAVAILABLE,
    HTTPStatus.BAD_GATEWAY: UNAVAILABLE,
    HTTPStatus.SERVICE_UNAVAILABLE: UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: TIMED_OUT,
}


def status_of(error: ClientError) -> int:
    """The exit status for an error."""
    match error:
        case TimedOutError() | LateError():
            return TIMED_OUT
        case ConnectionFailedError():
            return UNAVAILABLE
        case ProblemError():
            return _STATUSES.get(error.status, FAILED)
        case _:
            return FAILED


def told(error: ClientError) -> list[str]:
    """The lines that say it to a person."""
    lines = [f"pqs: {error}"]
    if isinstance(error, ProblemError):
        lines += [f"  {fault.pointer}: {fault.detail}" for fault in error.errors]
    if isinstance(error, UnauthenticatedError):
        lines.append("  name a key by --token-file, PQS_TOKEN_FILE or PQS_TOKEN")
    return [plain(line) for line in lines]
