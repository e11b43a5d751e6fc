"""Access as a whole: built from settings, loaded once before the first request, and run until it is stopped."""

import asyncio
import builtins
from collections.abc import Iterator

import pytest

from app.access.access import Access
from app.access.principals import ANYONE, Principal
from app.access.refusals import UnauthenticatedError
from app.errors import StartError
from app.settings import read_settings
from app.store import keys
from app.store.database import Database
from tests.access.issuing import AUDIENCE, Issuing, Signer, issuing
from tests.access.making import PATIENCE, change, new_key


@pytest.fixture
def issuer() -> Iterator[Issuing]:
    """An issuer with one key."""
    with issuing() as issuer:
        issuer.signers = [Signer("one", "ES256")]
        yield issuer


@pytest.mark.parametrize("posture", ["loopback", "insecure"])
async def test_without_keys_nothing_runs(posture: str) -> None:
    """Without keys every caller is let in, and `run` only waits for the stop."""
    access = Access(read_settings({"auth": posture}), "postgresql://127.0.0.1:1/x")
    stop = asyncio.Event()
    running = asyncio.create_task(access.run(stop))
    await access.refresh()
    assert access.guard.known(None) is ANYONE
    assert access.limits.take(ANYONE) is None
    stop.set()
    async with asyncio.timeout(PATIENCE):
        await running


async def test_keys_and_tokens_are_followed(database: Database, database_url: str, issuer: Issuing) -> None:
    """Keys and tokens both let their owners in, and a revocation takes effect."""
    key = await new_key(database)
    settings = read_settings({"auth": "required", "oidc_issuer": issuer.url, "oidc_audience": AUDIENCE})
    access = Access(settings, database_url)
    await access.refresh()
    stop = asyncio.Event()
    running = asyncio.create_task(access.run(stop))
    authorization = f"Bearer {key.text}".encode()
    assert isinstance(access.guard.known(authorization), Principal)
    token = b"Bearer " + issuer.signers[0].sign(issuer.claims())
    assert isinstance(await access.guard.authenticate([(b"authorization", token)]), Principal)
    await change(database, lambda connection: keys.revoke(connection, [key.id]))
    async with asyncio.timeout(PATIENCE):
        while not isinstance(access.guard.known(authorization), UnauthenticatedError):  # noqa: ASYNC110 - see run
            await asyncio.sleep(0.01)
        stop.set()
        await running


async def test_a_start_without_the_database_is_possible() -> None:
    """A start without the database raises no error, and no key is known until keys can be loaded."""
    access = Access(read_settings({"auth": "required"}), "postgresql://127.0.0.1:1/x")
    await access.refresh()
    assert not isinstance(access.guard.known(b"Bearer pqs_x"), Principal)


def test_an_issuer_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an issuer set and PyJWT missing, the start is refused and the message names the package to install."""
    load = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "app.access.tokens":
            raise ImportError(name="jwt")
        return load(name, *rest, **more)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(builtins, "__import__", without)
    given = {"auth": "required", "oidc_issuer": "https://i.example", "oidc_audience": "a"}
    with pytest.raises(StartError, match=r"^PQS_OIDC_ISSUER needs the extra oidc \(jwt is not installed\): install "):
        Access(read_settings(given), "postgresql://127.0.0.1:1/x")
