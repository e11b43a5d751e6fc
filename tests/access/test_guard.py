"""The front: from header fields to a principal, or to the refusal with what it has to carry."""

import logging
import os
import time
from datetime import timedelta

import pytest

from app.access.cache import KeyCache
from app.access.guard import Guard
from app.access.keys import AccessKey, make
from app.access.principals import ANYONE, Principal
from app.access.refusals import AuthError, ForbiddenError, UnauthenticatedError
from app.errors import UnavailableError
from app.settings import Posture
from app.store import keys
from app.store.database import Database
from tests.access.making import change, new_key

NO_TOKEN = 'Bearer realm="pqs"'
INVALID = 'Bearer realm="pqs", error="invalid_token"'


async def guarded(database_url: str) -> Guard:
    """A guard that asks for keys, and knows those of the database."""
    cache = KeyCache(database_url)
    await cache.refresh()
    return Guard(Posture.REQUIRED, cache)


def bearer(key: AccessKey | str, scheme: str = "Bearer") -> list[tuple[bytes, bytes]]:
    """The header fields of a request with this key."""
    text = key if isinstance(key, str) else key.text
    return [(b"host", b"service"), (b"authorization", f"{scheme} {text}".encode())]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_a_key_lets_its_owner_in(database: Database, database_url: str, scheme: str) -> None:
    """Whatever the case of the scheme (RFC 9110, section 11.1)."""
    key = await new_key(database, "orchestrator")
    guard = await guarded(database_url)
    found = await guard.authenticate(bearer(key, scheme))
    assert isinstance(found, Principal)
    assert found.name == f"key:orchestrator/{key.id}"
    assert guard.known(f"{scheme} {key.text}".encode()) is found


async def test_without_a_key_nobody_is_let_in(database_url: str) -> None:
    """401, and the field that says how to come in (RFC 6750, section 3)."""
    guard = await guarded(database_url)
    for refused in (await guard.authenticate([(b"host", b"service")]), guard.known(None)):
        assert isinstance(refused, UnauthenticatedError)
        assert refused.headers == {"WWW-Authenticate": NO_TOKEN}
        assert (refused.status, refused.type) == (401, "urn:pqs:problem:unauthenticated")


@pytest.mark.parametrize(
    ("authorization", "said"),
    [
        (b"", "has to be `Bearer`"),
        (b"Bearer", "has to be `Bearer`"),
        (b"Bearer ", "has to be `Bearer`"),
        (b"Basic dXNlcjpodW50ZXIy", "has to be `Bearer`"),
        (b"Bearer a b", "has to be `Bearer`"),
        (b"Bearer \xff", "has to be `Bearer`"),
        (b"Bearer hunter2", "not a key of this service"),
        (b"Bearer pqs_hunter2", "typing error"),
        (b"bearer pqs_hunter2", "typing error"),
        (b"Bearer a.b.c", "not a key of this service"),
    ],
)
async def test_a_bad_token_is_refused(database_url: str, authorization: bytes, said: str) -> None:
    """With `invalid_token`, and without a word of it."""
    guard = await guarded(database_url)
    refused = await guard.authenticate([(b"authorization", authorization)])
    assert isinstance(refused, UnauthenticatedError)
    assert refused.headers == {"WWW-Authenticate": INVALID}
    assert said in str(refused)
    assert "hunter2" not in str(refused)


async def test_a_key_that_is_over_is_refused(database: Database, database_url: str) -> None:
    """One that expired in memory, one that was revoked, one that never was, and one with another one's id."""
    expired, revoked, good = [await new_key(database) for _ in range(3)]
    cache = KeyCache(database_url)
    await cache.refresh()
    now = [time.time()]
    guard = Guard(Posture.REQUIRED, cache, now=lambda: now[0])
    assert isinstance(await guard.authenticate(bearer(expired)), Principal)
    await change(database, lambda connection: keys.revoke(connection, [revoked.id]))
    await cache.refresh()
    mixed = from_parts(good.id, revoked.text)
    for key, said in ((revoked, "not known"), (make(os.urandom), "not known"), (mixed, "not known")):
        refused = await guard.authenticate(bearer(key))
        assert isinstance(refused, UnauthenticatedError)
        assert said in str(refused)
    assert isinstance(await guard.authenticate(bearer(from_parts(revoked.id, good.text))), UnauthenticatedError)
    now[0] += timedelta(days=1, minutes=1).total_seconds()
    refused = await guard.authenticate(bearer(expired))
    assert isinstance(refused, UnauthenticatedError)
    assert str(refused) == "this key has expired"


def from_parts(id_: str, text: str) -> AccessKey:
    """A well-formed key with the id of one and the secret of another."""
    from zlib import crc32  # noqa: PLC0415

    body = f"pqs_{id_}_{text[15:58]}"
    return AccessKey(f"{body}_{crc32(body.encode()):08x}")


async def test_a_key_that_was_found_is_looked_at_again(database: Database, database_url: str) -> None:
    """Whoever keeps a key is told at once when it has expired, was revoked, or nobody can tell any more."""
    kept, revoked = [await new_key(database) for _ in range(2)]
    cache = KeyCache(database_url)
    await cache.refresh()
    now = [time.time()]
    guard = Guard(Posture.REQUIRED, cache, now=lambda: now[0])
    held, gone = [guard.key_in(bearer(key)[1][1]) for key in (kept, revoked)]
    assert held is not None
    assert gone is not None
    assert guard.known(bearer(kept)[1][1]) is held.principal
    held.used = False
    assert guard.still_knows(held)
    assert guard.still_knows(gone)
    assert held.used
    await change(database, lambda connection: keys.revoke(connection, [revoked.id]))
    await cache.refresh()
    assert not guard.still_knows(gone)
    assert not guard.still_knows(held)  # it is looked up again, as every key is then
    assert guard.key_in(bearer(revoked)[1][1]) is None
    again = guard.key_in(bearer(kept)[1][1])
    assert again is not None
    assert guard.still_knows(again)
    cache.fresh_until = cache.clock() - 1
    assert not guard.still_knows(again)
    await cache.refresh()
    now[0] += timedelta(days=1, minutes=1).total_seconds()
    assert not guard.still_knows(again)


@pytest.mark.parametrize("authorization", [None, b"", b"Bearer x", b"Bearer a.b.c", b"Bearer pqs_x", b"Basic eA=="])
async def test_what_is_no_key_is_not_kept(database_url: str, authorization: bytes | None) -> None:
    """Neither a token of an issuer nor nothing; and no service that is open keeps one."""
    assert (await guarded(database_url)).key_in(authorization) is None
    assert Guard(Posture.LOOPBACK).key_in(authorization) is None


async def test_what_is_said_while_nobody_can_tell(database: Database, database_url: str) -> None:
    """A key is neither good nor bad while the database is away: that is an outage, and not the caller's fault."""
    key = await new_key(database)
    guard = Guard(Posture.REQUIRED, KeyCache(database_url))
    assert isinstance(await guard.authenticate(bearer(key)), UnavailableError)
    assert isinstance(await guard.authenticate([]), UnauthenticatedError)


@pytest.mark.parametrize("query", [b"access_token=x", b"domain=a&access_token=x"])
async def test_a_token_in_the_query_is_refused(database: Database, database_url: str, query: bytes) -> None:
    """Even beside a good key: a URL is written to logs."""
    key = await new_key(database)
    guard = await guarded(database_url)
    refused = await guard.authenticate(bearer(key), query)
    assert isinstance(refused, UnauthenticatedError)
    assert "query" in str(refused)
    assert isinstance(await guard.authenticate(bearer(key), b"my_access_token=x&after=access_token"), Principal)


async def test_two_authorizations_are_none(database: Database, database_url: str) -> None:
    """Whoever is in front may have looked at the other one."""
    key = await new_key(database)
    guard = await guarded(database_url)
    assert isinstance(await guard.authenticate(bearer(key) + bearer(key)), UnauthenticatedError)


@pytest.mark.parametrize("posture", [Posture.LOOPBACK, Posture.INSECURE])
async def test_without_keys_everybody_is_let_in(posture: Posture) -> None:
    """Whatever the header says."""
    guard = Guard(posture)
    for headers in ([], bearer("hunter2"), bearer("pqs_x") * 2):
        assert await guard.authenticate(headers, b"access_token=x") is ANYONE
    assert guard.known(None) is ANYONE


@pytest.mark.parametrize("name", [b"forwarded", b"x-forwarded-for", b"x-forwarded-proto"])
async def test_a_proxy_in_front_of_a_trusting_service_is_refused(database_url: str, name: bytes) -> None:
    """403 on loopback, where everybody would look like this machine; no matter in the other postures."""
    refused = await Guard(Posture.LOOPBACK).authenticate([(name, b"for=192.0.2.1")])
    assert isinstance(refused, ForbiddenError)
    assert (refused.status, refused.type) == (403, "urn:pqs:problem:forbidden")
    assert await Guard(Posture.INSECURE).authenticate([(name, b"x")]) is ANYONE
    assert isinstance(await (await guarded(database_url)).authenticate([(name, b"x")]), UnauthenticatedError)
    assert [Guard(posture).refuses_proxies for posture in (Posture.LOOPBACK, Posture.INSECURE)] == [True, False]


def test_a_guard_needs_keys() -> None:
    """There is no posture in which it asks for keys that it cannot know."""
    with pytest.raises(ValueError, match="has to know them"):
        Guard(Posture.REQUIRED)


async def test_nothing_of_a_token_is_logged(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At no level, and in no error or repr."""
    caplog.set_level(logging.DEBUG)
    key = await new_key(database)
    guard = await guarded(database_url)
    found = await guard.authenticate(bearer(key))
    shown = f"{found!r} {guard!r} {vars(guard)} {guard._keys.__dict__}"
    other = make(os.urandom)
    refused = await guard.authenticate(bearer(other))
    assert isinstance(refused, AuthError)
    secrets = (key.text[15:58], other.text[15:58])
    for secret in secrets:
        assert secret not in f"{shown} {refused} {refused!r} {refused.headers} {caplog.text}"
