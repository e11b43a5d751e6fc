"""Request bodies, their media types and size limits; JSON answers."""

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from app.api.room import held_by
from app.errors import NoRoomError, TooLargeError, UnsupportedMediaError

JSON = "application/json"
NDJSON = "application/x-ndjson"
TEXT = "text/plain"

__all__ = ["JSON", "NDJSON", "TEXT", "ClientDisconnect", "json_answer", "media_type", "read_body"]


def json_answer(body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> Response:
    """A response with this JSON body."""
    return _Json(body, headers, status)


class _Json(Response):
    """A response whose headers are given as bytes: Starlette takes ten times as long to make them from text."""

    def __init__(self, body: bytes, headers: tuple[tuple[bytes, bytes], ...], status: int) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        length = b"%d" % len(body)
        self.raw_headers = [(b"content-length", length), (b"content-type", b"application/json"), *headers]


def _header(request: Request, name: bytes) -> str | None:
    """The first header of that name. Cheaper than request.headers, which Starlette builds anew per request."""
    return next((value.decode("latin-1") for key, value in request.scope["headers"] if key == name), None)


def media_type(request: Request, *accepted: str) -> str:
    """The body's media type, one of `accepted`; JSON if the request names a `+json` type.

    Raises UnsupportedMediaError for any other, and for none: a page of another origin can send a body without one.
    """
    named = (_header(request, b"content-type") or "").partition(";")[0].strip().lower()
    if named in accepted:
        return named
    if named.startswith("application/") and named.endswith("+json"):
        return JSON
    wanted = " or ".join(accepted)
    if not named:
        raise UnsupportedMediaError(f"the request does not say what its body is: send Content-Type: {wanted}")
    raise UnsupportedMediaError(f"this call does not accept the content type {named}: send Content-Type: {wanted}")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises ClientDisconnect if it ends early.

    Raises TooLargeError past `limit` bytes, and NoRoomError when this process holds too much of others; then it keeps
    nothing of this one.
    """
    declared = _header(request, b"content-length") or ""
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    held = held_by(request)
    body = bytearray()
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece = message.get("body", b"")
            held.take(len(piece))
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return bytes(body)
    except (NoRoomError, TooLargeError):
        body.clear()  # the error keeps this frame, while the rest of the body is read and dropped
        held.close()
        raise


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body is larger than {limit:,} bytes; a body of events as {NDJSON} may have any length")
