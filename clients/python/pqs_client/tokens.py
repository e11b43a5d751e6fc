"""The caller's token: where it comes from, and where it may go."""

import os
from collections.abc import Generator
from ipaddress import ip_address
from pathlib import Path

import httpx

TOKEN = "PQS_TOKEN"  # noqa: S105 - the names of environment variables
TOKEN_FILE = "PQS_TOKEN_FILE"  # noqa: S105


class TokenAuth(httpx.Auth):
    """Sends a token with each request, over https or to this machine.

    A token from a file is read again once after a 401: whoever exchanges keys writes the file anew. A request whose
    body is made while it is sent is not sent again.
    """

    def __init__(self, token: str | None = None, file: Path | None = None) -> None:
        """One of the two is given. Raises ValueError for a file that holds no token, and OSError."""
        self._file = file
        self._token = _checked(token) if token is not None else self._read()

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the token; see httpx."""
        check_address(request.url)
        sent = self._token
        request.headers["Authorization"] = f"Bearer {sent}"
        response = yield request
        if response.status_code != httpx.codes.UNAUTHORIZED or self._file is None:
            return
        try:
            self._token = self._read()
        except (OSError, ValueError):
            return  # the answer says what is wrong
        if self._token != sent and isinstance(request.stream, httpx.ByteStream):
            request.headers["Authorization"] = f"Bearer {self._token}"
            yield request

    def __repr__(self) -> str:
        """Nothing of the token."""
        return f"TokenAuth(file={self._file})"

    def _read(self) -> str:
        if self._file is None:
            raise ValueError("there is neither a token nor a file")
        return _checked(self._file.read_text(encoding="utf-8").strip())


def auth_of(token: str | None, file: str | os.PathLike[str] | None, url: httpx.URL) -> TokenAuth | None:
    """The token that is given, else that of the environment; None where there is none.

    Raises ValueError when both forms are given, and when the token would go over plain http beyond this machine.
    """
    if token is None and file is None:
        token, file = os.environ.get(TOKEN) or None, os.environ.get(TOKEN_FILE) or None
    if token is not None and file is not None:
        raise ValueError(f"there is a token and a file for it ({TOKEN}, {TOKEN_FILE}): one of them is enough")
    if token is None and file is None:
        return None
    check_address(url)
    return TokenAuth(token, None if file is None else Path(file))


def check_address(url: httpx.URL) -> None:
    """Raises ValueError for an address to which a token would go in the clear, past this machine."""
    if url.scheme == "http" and not _is_loopback_host(url.host):
        raise ValueError(f"a token does not go to http://{url.host}: everybody in between could read it; use https")


def _is_loopback_host(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def _checked(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("a token has one line of printable characters of ASCII, without blanks")
    return token
