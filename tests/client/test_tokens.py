"""The client's token: its source, its use, and the handling of refusals."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from pqs_client import Client, ForbiddenError, Retry, UnauthenticatedError
from pqs_client.tokens import TokenAuth

SECRET = "pqs_secret"
LOCAL = "http://127.0.0.1:8000"


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> httpx.MockTransport:
    """A service with this answer. Real ones are in tests/test_access.py; here only the request counts."""
    return httpx.MockTransport(answer)


def problem(status: int, kind: str, **headers: str) -> httpx.Response:
    """A refusal by the service."""
    body = {"type": f"urn:pqs:problem:{kind}", "title": kind, "status": status, "detail": "", "instance": "/"}
    return httpx.Response(status, json=body, headers=headers)


def counts() -> httpx.Response:
    """A valid answer."""
    return httpx.Response(200, json={"items": []})


async def sent_by(client: Client, sent: list[str | None]) -> str | None:
    """The Authorization header that a call sends."""
    async with client:
        await client.watermarks()
    return sent[-1]


@pytest.mark.parametrize("way", ["token", "token_file", "PQS_TOKEN", "PQS_TOKEN_FILE"])
async def test_a_token_is_sent(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is taken from an argument, a file, or the environment."""
    file = tmp_path / "token"
    file.write_text(SECRET + "\n")
    value = str(file) if way.lower().endswith("file") else SECRET
    sent: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers.get("authorization"))
        return counts()

    if way.startswith("PQS"):
        monkeypatch.setenv(way, value)
        client = Client(LOCAL, transport=answering(answer))
    elif way == "token":
        client = Client(LOCAL, token=value, transport=answering(answer))
    else:
        client = Client(LOCAL, token_file=value, transport=answering(answer))
    assert await sent_by(client, sent) == f"Bearer {SECRET}"


async def test_a_file_is_read_again_once(tmp_path: Path) -> None:
    """After a 401 the token file is read again; a new token is sent, an unchanged one is not."""
    file = tmp_path / "token"
    file.write_text("old")
    sent = list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.headers["authorization"])
        file.write_text("new")
        return counts() if sent[-1] == "Bearer new" else problem(401, "unauthenticated")

    async with Client(LOCAL, token_file=file, transport=answering(answer)) as client:
        await client.watermarks()
    assert sent == ["Bearer old", "Bearer new"]
    file.write_text("old")
    sent.clear()
    async with Client(LOCAL, token="old", transport=answering(answer)) as client:
        with pytest.raises(UnauthenticatedError):
            await client.watermarks()
    assert sent == ["Bearer old"]


@pytest.mark.parametrize("url", ["http://pqs.example", "http://192.0.2.1:8000", "http://localhost.example"])
def test_no_token_goes_in_the_clear(url: str) -> None:
    """Plain http beyond this machine is refused before anything is sent; the message does not contain the token."""
    with pytest.raises(ValueError, match="use https") as refused:
        Client(url, token=SECRET)
    assert SECRET not in str(refused.value)
    for good in ("https://pqs.example", "http://localhost:8000", "http://[::1]:8000", "http://127.0.0.2"):
        Client(good, token=SECRET)


def test_two_tokens_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with a file, or with `auth`, is refused; an argument overrides the environment."""
    for given in ({"token": "a", "token_file": tmp_path}, {"token": "a", "auth": httpx.BasicAuth("a", "b")}):
        with pytest.raises(ValueError, match="one of them is enough"):
            Client(LOCAL, **given)  # type: ignore[arg-type]  # of several types
    monkeypatch.setenv("PQS_TOKEN", "a")
    monkeypatch.setenv("PQS_TOKEN_FILE", "b")
    Client(LOCAL, token="c")
    with pytest.raises(ValueError, match="PQS_TOKEN"):
        Client(LOCAL)


@pytest.mark.parametrize("token", ["", "two words", "two\nlines", "ümlaut"])
def test_what_is_no_token_is_refused(token: str) -> None:
    """A token must be one word, so nothing can be injected into the header."""
    with pytest.raises(ValueError, match="one line"):
        Client(LOCAL, token=token)


def test_a_token_is_not_shown() -> None:
    """No repr contains the token."""
    assert SECRET not in repr(TokenAuth(SECRET))


async def test_refusals_have_their_own_errors() -> None:
    """401 and 403 have their own errors, and are not retried."""
    for status, kind, error in (
        (401, "unauthenticated", UnauthenticatedError),
        (403, "forbidden", ForbiddenError),
    ):
        asked = 0

        def answer(_: httpx.Request, status: int = status, kind: str = kind) -> httpx.Response:
            nonlocal asked
            asked += 1
            return problem(status, kind)

        async with Client(LOCAL, token="a", transport=answering(answer)) as client:
            with pytest.raises(error):
                await client.watermarks()
        assert asked == 1


async def test_a_429_is_waited_out() -> None:
    """After a 429 a call is sent again after the service's wait, even if it is not otherwise repeatable."""
    waited, answers = list[float](), [problem(429, "rate-limited", **{"Retry-After": "3"})]

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    def answer(_: httpx.Request) -> httpx.Response:
        return answers.pop() if answers else counts()

    async with Client(LOCAL, transport=answering(answer), sleep=sleep, jitter=lambda: 0, retry=Retry()) as client:
        await client._caller.call("POST", "/v1/x", repeatable=False)
    assert waited == [3.0]
