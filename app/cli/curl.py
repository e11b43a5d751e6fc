"""`--curl`: a call as a line for a shell, without the secret in it."""

import os
import shlex
from collections.abc import Iterator

import click
import httpx

# What httpx adds by itself, or curl does.
OWN = {"accept-encoding", "authorization", "connection", "content-length", "host", "transfer-encoding", "user-agent"}
ANYTHING = ("accept", "*/*")


class NotMadeError(Exception):
    """The call was printed, and not made."""


class Curl(httpx.AsyncBaseTransport):
    """Prints each request as a command of curl, and raises NotMadeError.

    A token is named by its file or its variable: the shell that runs the command looks it up.
    """

    def __init__(self, token_file: str | None) -> None:
        self._token_file = token_file

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Print it."""
        await request.aread()
        click.echo(" ".join(self._words(request)))
        raise NotMadeError

    def _words(self, request: httpx.Request) -> Iterator[str]:
        yield "curl -sS --fail-with-body"
        if request.method not in {"GET", "POST"} or (request.method == "POST" and not request.content):
            yield f"-X {request.method}"
        for name, value in request.headers.items():
            if name not in OWN and (name, value) != ANYTHING:
                yield f"-H {shlex.quote(f'{name}: {value}')}"
        if request.headers.get("authorization", "").startswith("Bearer "):
            yield f'-H "Authorization: Bearer {self._token()}"'
        if request.content:
            yield f"--data-binary {shlex.quote(request.content.decode())}"
        yield shlex.quote(str(request.url))

    def _token(self) -> str:
        if self._token_file is not None:
            return f"$(cat {shlex.quote(self._token_file)})"
        return "$PQS_TOKEN" if os.environ.get("PQS_TOKEN") else '$(cat "$PQS_TOKEN_FILE")'
