"""Requests to an ASGI application, written as its messages, for tests of one layer around FastAPI at a time."""

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from app.api.asgi import App, Headers


@dataclass
class Answered:
    """An application's answer."""

    messages: list[MutableMapping[str, Any]] = field(default_factory=list)
    scope: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The status of the answer."""
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> Headers:
        """The headers of the answer."""
        return [(bytes(name), bytes(value)) for name, value in self.messages[0]["headers"]]

    @property
    def bodies(self) -> list[bytes]:
        """The body in the pieces in which the application sent it."""
        return [bytes(message.get("body", b"")) for message in self.messages[1:]]

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(self.bodies)

    def header(self, name: str) -> str | None:
        """The value of the header with that name."""
        return next((value.decode() for key, value in self.headers if key == name.encode()), None)


async def ask(
    app: App, method: str, target: str, headers: Iterable[tuple[str, str]] = (), body: Iterable[bytes] = (b"",)
) -> Answered:
    """Send one request with its body in these pieces; after the last piece the client disconnects."""
    path, _, query = target.partition("?")
    pieces = list(body)
    messages: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
        for number, piece in enumerate(pieces, start=1)
    ]
    messages.append({"type": "http.disconnect"})
    answered = Answered()
    answered.scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        answered.messages.append(message)

    await app(answered.scope, receive, send)
    return answered
