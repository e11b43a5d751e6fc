"""Signing in: a key posted once, a cookie that scripts cannot read, and what a session may do."""

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser, expect

from app.access.keys import AccessKey
from app.access.principals import Scope
from app.store import keys
from app.store.database import Connection, Database
from tests.access.making import change, new_key
from tests.access.test_provider import providing
from tests.console.conftest import Console, console_of
from tests.making import life
from tests.processes import Service, serving

pytestmark = pytest.mark.console


async def make_key(url: str, name: str) -> AccessKey:
    """A key with all rights."""
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
    try:
        return await new_key(
            database, name, scopes=tuple(Scope), domains=("*",), prefixes=("",), rate=None, burst=None
        )
    finally:
        await database.close()


async def revoke(url: str, key: AccessKey) -> None:
    """End a key."""

    async def do(connection: Connection) -> None:
        await keys.revoke(connection, [key.id])

    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
    try:
        await change(database, do)
    finally:
        await database.close()


@pytest.fixture(scope="module")
def key(database: str, portal: BlockingPortal) -> AccessKey:
    """A key with all rights."""
    return portal.call(make_key, database, "ada")


@pytest.fixture(scope="module")
def guarded(database: str, key: AccessKey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that asks for keys, with one node."""
    folder = tmp_path_factory.mktemp("guarded")
    with serving(folder, database_url=database, auth="required", log_level="error") as service:
        answer = httpx.post(
            f"{service.url}/v1/events", json=life(), headers={"Authorization": f"Bearer {key.text}"}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        yield service


def sign_in(tab: Console, text: str) -> None:
    """Type a key and send it."""
    tab.page.get_by_label("Key or token").fill(text)
    tab.page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_people_sign_in_with_a_key(guarded: Service, browser: Browser, key: AccessKey, host: str) -> None:
    """The key is posted once; then a cookie that no script reads stands for it, over http on this machine too."""
    url = guarded.url.replace("127.0.0.1", host)
    with console_of(browser, url) as tab:
        bodies: list[str] = []
        tab.page.on("request", lambda request: bodies.append(f"{request.headers} {request.post_data}"))
        tab.page.goto(f"{url}/ui/entities")
        sign_in(tab, key.text)
        expect(tab.rows("Entities")).to_have_count(1)
        assert len([body for body in bodies if key.text in body]) == 1
        [cookie] = tab.page.context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["secure"], cookie["sameSite"], cookie["path"]) == (
            "__Host-pqs",
            True,
            True,
            "Strict",
            "/",
        )
        assert tab.page.evaluate("document.cookie") == ""
        tab.page.reload()
        expect(tab.rows("Entities")).to_have_count(1)
        tab.open("system")
        expect(tab.rows("Audit").filter(has_text="session.begin").first).to_contain_text("key:ada/")
        expect(tab.rows("Keys").filter(has_text="ada")).to_contain_text("live")
        assert key.text not in tab.page.content()
        tab.page.get_by_role("button", name="Sign out").click()
        expect(tab.page.get_by_label("Key or token")).to_be_visible()
        assert tab.page.context.cookies() == []


def test_a_wrong_key_is_refused(guarded: Service, browser: Browser) -> None:
    """What is no key is refused in the service's own words, and nothing is shown."""
    with console_of(browser, guarded.url, answered=[401]) as tab:
        tab.page.goto(f"{guarded.url}/ui/overview")
        sign_in(tab, "pqs_wrong")
        expect(tab.page.get_by_role("alert")).to_contain_text("typing error")


def test_a_session_may_act(guarded: Service, browser: Browser, key: AccessKey) -> None:
    """Acts go through with the session's token."""
    with console_of(browser, guarded.url) as tab:
        tab.page.goto(f"{guarded.url}/ui/entities")
        sign_in(tab, key.text)
        tab.rows("Entities").locator("a.id").click()
        tab.page.get_by_role("button", name="Deregister…").click()
        tab.page.get_by_role("button", name="Continue").click()
        tab.page.get_by_role("button", name="Deregister it now").click()
        expect(tab.page.get_by_text("Deregistered.")).to_be_visible()


def test_a_session_ends_with_its_key(
    guarded: Service, browser: Browser, database: str, portal: BlockingPortal
) -> None:
    """Within five seconds after the key was revoked the page asks for another one, and shows nothing."""
    short = portal.call(make_key, database, "short")
    with console_of(browser, guarded.url, answered=[401]) as tab:
        tab.page.goto(f"{guarded.url}/ui/overview")
        sign_in(tab, short.text)
        tab.await_data()
        tab.page.locator("select[name=interval]").select_option("1")
        portal.call(revoke, database, short)
        expect(tab.page.get_by_label("Key or token")).to_be_visible(timeout=8_000)
        expect(tab.page.locator("main .page")).to_have_count(0)


def test_the_session_is_over_with_its_time(
    guarded: Service, browser: Browser, key: AccessKey, database: str, portal: BlockingPortal
) -> None:
    """A session that is over lets nobody in."""

    async def end_all() -> None:
        found = Database(database, pool_size=1, statement_timeout=timedelta(seconds=5))

        async def do(connection: Connection) -> None:
            await connection.execute("UPDATE sessions SET expires_at = now()")

        await found.write(do)
        await found.close()
        await asyncio.sleep(2.1)  # a look into the table counts for two seconds

    with console_of(browser, guarded.url, answered=[401]) as tab:
        tab.page.goto(f"{guarded.url}/ui/overview")
        sign_in(tab, key.text)
        tab.await_data()
        portal.call(end_all)
        tab.page.get_by_role("button", name="Refresh").click()
        expect(tab.page.get_by_label("Key or token")).to_be_visible()


@pytest.fixture(scope="module")
def with_issuer(
    database: str, key: AccessKey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Service, str]]:
    """A service at whose issuer people sign in, and the issuer's address."""
    with (
        providing() as provider,
        serving(
            tmp_path_factory.mktemp("issuer"),
            database_url=database,
            auth="required",
            log_level="error",
            oidc_issuer=provider,
            oidc_audience="console",
            oidc_client_id="console",
            oidc_client_secret="secret",
            oidc_scopes_claim="realm.roles",
            oidc_scopes_map="viewer=entities:read,viewer=operations:read",
        ) as service,
    ):
        answer = httpx.post(
            f"{service.url}/v1/events", json=life(), headers={"Authorization": f"Bearer {key.text}"}, timeout=30
        )
        assert answer.status_code == 200, answer.text
        yield service, provider


def test_people_sign_in_at_the_issuer(with_issuer: tuple[Service, str], browser: Browser) -> None:
    """With a code and PKCE; the browser comes back to the page that it left, with the rights of the token."""
    service, provider = with_issuer
    context = browser.new_context()
    page = context.new_page()
    try:
        page.goto(f"{service.url}/ui/entities?state=active&state=liveness_expired")
        with page.expect_request(re.compile(f"{provider}/oauth2/authorize")) as asked:
            page.get_by_role("link", name="Sign in with OpenID Connect").click()
        query = parse_qs(urlsplit(asked.value.url).query)
        assert query["response_type"] == ["code"]
        assert query["code_challenge_method"] == ["S256"]
        assert len(query["code_challenge"][0]) == 43
        assert query["redirect_uri"] == [f"{service.url}/ui/oidc/back"]
        page.locator("input[name=sub]").fill("ops")
        page.get_by_role("button", name="Authorize").click()
        expect(page.get_by_role("region", name="Entities", exact=True).locator("tbody tr")).to_have_count(1)
        assert page.url == f"{service.url}/ui/entities?state=active&state=liveness_expired"
        assert [cookie["name"] for cookie in context.cookies(service.url)] == ["__Host-pqs"]
        page.goto(f"{service.url}/ui/system")
        expect(page.get_by_role("button", name="Sign out")).to_have_attribute("title", "oidc:ops")
        acts = page.get_by_role("region", name="Audit", exact=True).locator("tbody tr")
        expect(acts.filter(has_text="session.begin").first).to_contain_text("oidc:ops")
    finally:
        context.close()


def test_a_code_of_somebody_else_is_refused(with_issuer: tuple[Service, str]) -> None:
    """Whoever did not begin here cannot be signed in by an address that somebody sends, and no code is redeemed."""
    service, _ = with_issuer
    back = f"{service.url}/ui/oidc/back"
    for query, cookie in (("code=a&state=b", ""), ("error=access_denied", ""), ("code=a&state=b", "A" * 43)):
        headers = {"Cookie": f"__Host-pqs-flow={cookie}.{'B' * 43}"} if cookie else {}
        answer = httpx.get(f"{back}?{query}", headers=headers)
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    begun = httpx.get(f"{service.url}/ui/oidc")
    assert begun.status_code == 302
    flow = begun.headers["set-cookie"].partition(";")[0]
    state = parse_qs(urlsplit(begun.headers["location"]).query)["state"][0]
    answer = httpx.get(f"{back}?code=unknown&state={state}", headers={"Cookie": flow})
    assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
