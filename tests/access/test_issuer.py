"""The keys of an issuer: rotation, storms of unknown key ids, outages, and untrustworthy answers."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from app.access.issuer import Issuer, is_protected
from tests.access.issuing import Issuing, Signer, issuing

PATIENCE = 30.0  # seconds; only a test that fails waits that long


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The clock's time in seconds."""
        return self.now


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    while not condition():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.005)


@pytest.fixture
def endpoint() -> Iterator[Issuing]:
    """An issuer with one key."""
    with issuing() as issuer:
        issuer.signers = [Signer("one", "ES256")]
        yield issuer


async def test_a_new_key_is_found_when_it_is_used(endpoint: Issuing) -> None:
    """After a rotation the unknown key id causes a fetch, and the new key counts beside the old one."""
    issuer = Issuer(endpoint.url)
    assert await issuer.refresh()
    endpoint.signers.append(Signer("two", "EdDSA"))
    assert issuer.find("two", "EdDSA") is None
    await issuer.ask()
    assert issuer.find("two", "EdDSA") is not None
    assert issuer.find("one", "ES256") is not None
    assert issuer.find("one", "RS256") is None


async def test_a_storm_of_unknown_ids_causes_one_fetch_in_30_seconds(endpoint: Issuing) -> None:
    """Unknown key ids, at once or one after the other, cause one fetch in 30 seconds."""
    clock = Clock()
    issuer = Issuer(endpoint.url, clock=clock)
    await asyncio.gather(*(issuer.ask() for _ in range(100)))
    for _ in range(100):
        await issuer.ask()
    clock.now += 29.9
    await issuer.ask()
    assert endpoint.requests == 1
    clock.now += 0.2
    await asyncio.gather(*(issuer.ask() for _ in range(100)))
    assert endpoint.requests == 2


async def test_the_last_good_set_serves_for_a_day(endpoint: Issuing) -> None:
    """While the issuer fails, its last keys count for a day, and then not until it answers again."""
    clock = Clock()
    issuer = Issuer(endpoint.url, clock=clock)
    assert not issuer.is_known
    await issuer.refresh()
    endpoint.status = 503
    clock.now += 24 * 3600
    assert await issuer.refresh() is False
    said = [issuer.is_known]
    assert issuer.find("one", "ES256") is not None
    clock.now += 1
    said.append(issuer.is_known)
    endpoint.status = 200
    assert await issuer.refresh()
    assert [*said, issuer.is_known] == [True, False, True]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"", {}, 500, "answers with status 500"),
        (b"", {"Location": "/realm/elsewhere"}, 302, "answers with status 302"),
        (b"nonsense", {}, 200, "does not answer with the document"),
        (b"[]", {}, 200, "does not answer with the document"),
        (b'{"keys": {}}', {}, 200, "does not answer with the document"),
        (b'{"keys": []}' + b" " * 270_000, {}, 200, "more than 262,144 bytes"),
        (b"\x1f\x8b", {"Content-Encoding": "gzip"}, 200, "in a coding that was not asked for"),
    ],
)
async def test_an_answer_that_is_not_to_be_believed(
    endpoint: Issuing,
    body: bytes,
    headers: dict[str, str],
    status: int,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An untrustworthy answer is logged once, and the last keys stay valid."""
    issuer = Issuer(endpoint.url)
    await issuer.refresh()
    endpoint.body, endpoint.headers, endpoint.status = body, headers, status
    assert await issuer.refresh() is False
    assert await issuer.refresh() is False
    assert issuer.find("one", "ES256") is not None
    assert caplog.text.count(said) == 1


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"issuer": "https://another.example"}, "is about another issuer"),
        ({"jwks_uri": "http://issuer.example/keys"}, "is neither https nor on loopback"),
        ({"jwks_uri": "file:///etc/passwd"}, "is neither https nor on loopback"),
        ({"jwks_uri": "https://["}, "ValueError: Invalid IPv6 URL"),
        ({"jwks_uri": 7}, "does not answer with the document"),
    ],
    ids=str,
)
async def test_a_discovery_document_that_does_not_count(
    endpoint: Issuing, about: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A discovery document counts only if it names the issuer that was asked and a key URL on https or loopback."""
    endpoint.about = about
    assert await Issuer(endpoint.url).refresh() is False
    assert said in caplog.text
    assert endpoint.requests == 0


async def test_an_issuer_that_does_not_answer_is_given_up(
    endpoint: Issuing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fetch from an issuer that does not answer ends within the fetch's total time."""
    monkeypatch.setattr("app.access.issuer.FETCH_TIME", timedelta(milliseconds=50))
    endpoint.delay = 0.5
    assert await Issuer(endpoint.url).refresh() is False
    assert "TimeoutError" in caplog.text
    assert await Issuer("http://127.0.0.1:1").refresh() is False


async def test_an_empty_set_is_a_set(endpoint: Issuing) -> None:
    """An issuer that lists no key has withdrawn all its keys."""
    issuer = Issuer(endpoint.url)
    await issuer.refresh()
    endpoint.signers = []
    assert await issuer.refresh()
    assert issuer.find("one", "ES256") is None


@pytest.mark.parametrize(
    "jwk",
    [{}, {"kty": "RSA"}, {"kty": "EC", "crv": "P-256", "x": "!", "y": 7}, {"kty": "OKP", "crv": "X25519"}],
    ids=str,
)
async def test_keys_that_cannot_be_read_are_left_out(endpoint: Issuing, jwk: dict[str, object]) -> None:
    """Unreadable keys of a set are skipped, and its other keys count."""
    broken = Signer("broken", "ES256")
    broken.jwk = jwk
    endpoint.signers.insert(0, broken)
    issuer = Issuer(endpoint.url)
    assert await issuer.refresh()
    assert issuer.find("one", "ES256") is not None
    assert issuer.find("broken", "ES256") is None


async def test_keys_are_kept_fresh(endpoint: Issuing, caplog: pytest.LogCaptureFixture) -> None:
    """Keys are fetched periodically, through an outage too, which is logged at its beginning and at its end."""
    caplog.set_level(logging.INFO, "app.access.issuer")
    issuer = Issuer(endpoint.url, every=timedelta(milliseconds=10))
    stop = asyncio.Event()
    task = asyncio.create_task(issuer.run(stop))
    async with asyncio.timeout(PATIENCE):
        await until(lambda: endpoint.requests > 2)
        endpoint.status = 500
        await until(lambda: "cannot be fetched" in caplog.text)
        endpoint.status, endpoint.signers = 200, [Signer("later", "ES256")]
        await until(lambda: issuer.find("later", "ES256") is not None)
        stop.set()
        await task
    assert caplog.text.count("cannot be fetched") == caplog.text.count("are fetched again") == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://issuer.example", True),
        ("http://127.0.0.1:9", True),
        ("http://localhost", True),
        ("http://[::1]:9", True),
        ("http://issuer.example", False),
        ("http://127.0.0.1.example", False),
        ("http://localhost@issuer.example", False),
        ("ftp://localhost", False),
    ],
)
def test_what_is_protected(url: str, expected: bool) -> None:
    """A URL is protected if it is https, or http that does not leave this machine."""
    assert is_protected(url) is expected
