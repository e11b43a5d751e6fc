"""Request bodies: what they say they are, and how much of them is read."""

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.requests import ClientDisconnect

from app.errors import TooLargeError, UnsupportedMediaError

JSON = "application/json"
NDJSON = "application/x-ndjson"

__all__ = ["JSON", "NDJSON", "ClientDisconnect", "lines", "media_type", "read_body"]


def media_type(request: Request, *accepted: str) -> str:
    """The body's media type, one of `accepted`; JSON when the request names none, or a `+json` type.

    Raises UnsupportedMediaError for any other.
    """
    named = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if named in accepted:
        return named
    if named == "" or (named.startswith("application/") and named.endswith("+json")):
        return JSON
    wanted = " or ".join(accepted)
    raise UnsupportedMediaError(f"the content type is {named}; send Content-Type: {wanted}")


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLargeError past `limit` bytes, and ClientDisconnect when it ends early."""
    too_large = TooLargeError(f"the body is larger than {limit:,} bytes; events may come as {NDJSON}, of any length")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def lines(request: Request, limit: int) -> AsyncIterator[bytes | None]:
    """The body's lines without their ends, as they arrive; None for one of more than `limit` bytes.

    No more than `limit` bytes and a network read are held. Raises ClientDisconnect when the body ends early, without
    the part of a line that was there.
    """
    held = bytearray()
    too_long = False
    async for chunk in request.stream():
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            held += part
            yield None if too_long or len(held) > limit else bytes(held)
            held.clear()
            too_long = False
        if too_long or len(held) + len(rest) > limit:
            too_long = True
            held.clear()
        else:
            held += rest
    if too_long or held:
        yield None if too_long else bytes(held)
