"""An ASGI application that echoes each request, and misbehaves on request."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass
class Echo:
    """An application that echoes each request, and has special behaviour on these paths."""

    asked: list[tuple[str, str, bytes]] = field(default_factory=list)  # method, path and query, body
    messages: list[str] = field(default_factory=list)  # types that `/gone` and `/wait` received
    sent: int = 0  # bytes that `/long` has sent
    failures: list[str] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        special = getattr(self, "_" + scope["path"].strip("/"), None)
        if special is not None:
            await special(scope, receive, send)
            return
        body = await self._read(receive)
        query = scope["query_string"].decode()
        self.asked.append((scope["method"], scope["raw_path"].decode() + (f"?{query}" if query else ""), body))
        await self._answer(send, json.dumps({"path": scope["path"], "version": scope["http_version"]}).encode())

    async def _read(self, receive: Receive) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            self.messages.append(message["type"])
            if message["type"] == "http.disconnect":
                break
            body += message["body"]
            more = message["more_body"]
        return body

    async def _answer(self, send: Send, body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> None:
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
        await send({"type": "http.response.body", "body": body})

    async def _wait(self, _scope: Message, receive: Receive, send: Send) -> None:
        """Read the request, and answer when `go` is set."""
        await self._read(receive)
        await self.go.wait()
        await self._answer(send, b"waited")

    async def _refuse(self, _scope: Message, _receive: Receive, send: Send) -> None:
        """Answer without reading the request."""
        await self._answer(send, b"refused", status=403)

    async def _pieces(self, _scope: Message, receive: Receive, send: Send) -> None:
        """Answer in pieces, without a length."""
        await self._read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Transfer-Encoding", b"x")]})
        for piece in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def _long(self, _scope: Message, _receive: Receive, send: Send) -> None:
        """Send an endless answer."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1024), "more_body": True})
            self.sent += 1024

    async def _status(self, scope: Message, _receive: Receive, send: Send) -> None:
        """Answer with the status in the path, and a body even where none is allowed."""
        await self._answer(send, b"body", status=int(scope["query_string"]))

    async def _gone(self, _scope: Message, receive: Receive, _send: Send) -> None:
        """Wait for the client to disconnect."""
        while (message := await receive())["type"] != "http.disconnect":
            self.messages.append(message["type"])
        self.messages.append(message["type"])

    async def _fail(self, _scope: Message, _receive: Receive, _send: Send) -> None:
        raise ValueError("on fire")

    async def _forget(self, _scope: Message, _receive: Receive, _send: Send) -> None:
        """Send no answer."""

    async def _start(self, _scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})

    async def _short(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._start(scope, receive, send)
        await send({"type": "http.response.body", "body": b"abc"})

    async def _forge(self, _scope: Message, _receive: Receive, send: Send) -> None:
        headers = [(b"x", b"a\r\nset-cookie: b")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _twice(self, _scope: Message, _receive: Receive, send: Send) -> None:
        await self._answer(send, b"once")
        try:
            await self._answer(send, b"twice")
        except RuntimeError as error:
            self.failures.append(str(error))
