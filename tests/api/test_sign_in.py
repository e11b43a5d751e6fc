"""`/ui/session`: what begins, keeps and ends a session, and what a session cannot be made to do."""

from collections.abc import AsyncIterator
from datetime import timedelta
from http.cookies import SimpleCookie

import httpx
import pytest

from app.access.keys import AccessKey
from app.access.principals import Scope
from app.access.sessions import COOKIE
from app.store.database import Database
from tests.access.making import new_key
from tests.api.conftest import service_on
from tests.databases import new_database
from tests.making import NODE, Json, life

OWN = {"Origin": "http://localhost"}
ACT = f"/v1/entities/{NODE}/deregister"


class Guarded:
    """A service that asks for keys, a key for all, and the way to sign in."""

    def __init__(self, client: httpx.AsyncClient, key: AccessKey) -> None:
        self.client = client
        self.key = key

    async def sign_in(self, **headers: str) -> httpx.Response:
        """Post the key, by default from a page of the service."""
        return await self.client.post("/ui/session", json={"key": self.key.text}, headers=headers or OWN)

    async def session(self) -> tuple[dict[str, str], str]:
        """The cookie of a new session, as a header, and its token."""
        answer = await self.sign_in()
        assert answer.status_code == 200, answer.text
        secret = SimpleCookie(answer.headers["set-cookie"])[COOKIE].value
        self.client.cookies.clear()
        return {"Cookie": f"other=1; {COOKIE}={secret}"}, answer.json()["token"]


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Guarded]:
    """A service that asks for keys, with one node."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
        everything: Json = {"scopes": tuple(Scope), "domains": ("*",), "prefixes": ("",), "rate": None, "burst": None}
        key = await new_key(database, "ada", **everything)
        await database.close()
        async with service_on(url, auth="required") as client:
            await client.post("/v1/events", json=life(), headers={"Authorization": f"Bearer {key.text}"})
            yield Guarded(client, key)


async def test_the_cookie_is_for_this_host_only(guarded: Guarded) -> None:
    """It is sent over https only, to no other host, from no other site, to no script, for eight hours."""
    answer = await guarded.sign_in()
    guarded.client.cookies.clear()
    attributes = answer.headers["set-cookie"].split("; ")
    assert attributes[0].startswith("__Host-pqs=")
    assert set(attributes[1:]) == {"Max-Age=28800", "Path=/", "HttpOnly", "Secure", "SameSite=Strict"}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["principal"] == f"key:ada/{guarded.key.id}"
    assert guarded.key.text not in answer.text


@pytest.mark.parametrize("origin", [None, "http://evil.example", "http://localhost:81"])
async def test_only_its_own_pages_sign_in(guarded: Guarded, origin: str | None) -> None:
    """Without `Origin`, and from any other one, nobody is signed in."""
    answer = await guarded.sign_in(**({"X": "y"} if origin is None else {"Origin": origin}))
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("body", "status"),
    [(b'{"key": "pqs_wrong"}', 401), (b'{"key": "a.b.c"}', 401), (b'{"key": "\xc3\xa9"}', 400), (b"[]", 400)],
)
async def test_what_is_no_key_is_refused(guarded: Guarded, body: bytes, status: int) -> None:
    """A typing error, a token, and a body of another form begin no session."""
    answer = await guarded.client.post(
        "/ui/session", content=body, headers=OWN | {"Content-Type": "application/json"}
    )
    assert (answer.status_code, "set-cookie" in answer.headers) == (status, False)


async def test_a_session_reads(guarded: Guarded) -> None:
    """The cookie alone reads, by the way of the hot calls too; one that nobody knows does not."""
    cookie, _ = await guarded.session()
    for path in (f"/v1/entities/{NODE}", "/v1/state-counts", "/v1/changes?after=now", "/openapi.json"):
        assert (await guarded.client.get(path, headers=cookie)).status_code == 200, path
    unknown = {"Cookie": f"{COOKIE}={'A' * 43}"}
    answer = await guarded.client.get("/v1/state-counts", headers=unknown)
    assert answer.status_code == 401
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert (await guarded.client.get("/ui/session", headers=unknown)).json()["principal"] is None
    assert (await guarded.client.get("/ui/session", headers=cookie)).json()["principal"] is not None


@pytest.mark.parametrize(
    ("origin", "has_token"),
    [(None, True), ("http://localhost:81", True), ("http://localhost", False), (None, False)],
)
async def test_an_unsafe_call_needs_origin_and_token(guarded: Guarded, origin: str | None, has_token: bool) -> None:
    """The cookie alone changes nothing: both an own `Origin` and the session's token are needed."""
    cookie, token = await guarded.session()
    headers = cookie | ({"Origin": origin} if origin else {}) | ({"PQS-Token": token} if has_token else {})
    assert (await guarded.client.post(ACT, json={}, headers=headers)).status_code == 403
    _, other = await guarded.session()
    answer = await guarded.client.post(ACT, json={}, headers=cookie | OWN | {"PQS-Token": other})
    assert answer.status_code == 403


async def test_a_session_acts_in_the_name_of_its_key(guarded: Guarded) -> None:
    """With both, the call goes through, and the audit names the key."""
    cookie, token = await guarded.session()
    answer = await guarded.client.post(ACT, json={}, headers=cookie | OWN | {"PQS-Token": token})
    assert answer.status_code == 200, answer.text
    [act] = (await guarded.client.get("/v1/audit?limit=1", headers=cookie)).json()["items"]
    assert (act["principal"], act["action"]) == (f"key:ada/{guarded.key.id}", "entities.deregister")


async def test_signing_out_ends_the_session(guarded: Guarded) -> None:
    """Only with its token; then the cookie counts no more, and the browser is told to drop it."""
    cookie, token = await guarded.session()
    assert (await guarded.client.delete("/ui/session", headers=cookie | OWN)).status_code == 403
    answer = await guarded.client.delete("/ui/session", headers=cookie | OWN | {"PQS-Token": token})
    assert answer.status_code == 200
    assert "Max-Age=0" in answer.headers["set-cookie"]
    guarded.client.cookies.clear()
    assert (await guarded.client.get("/v1/state-counts", headers=cookie)).status_code == 401


async def test_a_key_counts_beside_a_cookie(guarded: Guarded) -> None:
    """A request with a key is the key's, whatever cookies come along: it needs no token."""
    headers = {"Cookie": f"{COOKIE}={'A' * 43}", "Authorization": f"Bearer {guarded.key.text}"}
    assert (await guarded.client.post("/v1/events?dry_run=true", json=life(), headers=headers)).status_code == 200


async def test_sessions_of_a_read_only_console_only_read(database_url: str) -> None:
    """With PQS_CONSOLE=read-only a session changes nothing, and with off there is none."""
    database = Database(database_url, pool_size=1, statement_timeout=timedelta(seconds=5))
    everything: Json = {"scopes": tuple(Scope), "domains": ("*",), "prefixes": ("",), "rate": None, "burst": None}
    key = await new_key(database, "ada", **everything)
    await database.close()
    async with service_on(database_url, auth="required", console="read-only") as client:
        cookie, token = await Guarded(client, key).session()
        assert (await client.get("/v1/state-counts", headers=cookie)).status_code == 200
        answer = await client.post("/v1/events", json=life(), headers=cookie | OWN | {"PQS-Token": token})
        assert answer.status_code == 403
        assert "read-only" in answer.json()["detail"]
    async with service_on(database_url, auth="required", console="off") as client:
        assert (await client.get("/v1/state-counts", headers=cookie)).status_code == 401
