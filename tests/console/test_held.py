"""Held entities in the console: what waits behind a dead letter, and what an operator does about it."""

from datetime import timedelta

import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser, expect

from app.store.database import Database
from tests.api.test_held import lives
from tests.console.conftest import console_of, get
from tests.inbound.test_holding import Log
from tests.making import node
from tests.processes import Service

pytestmark = pytest.mark.console

HELD = 3


async def hold(url: str) -> None:
    """Have messages of some nodes taken in, of which one each cannot be read."""
    database = Database(url, pool_size=4, statement_timeout=timedelta(seconds=5))
    try:
        await Log(database).take(*lives(HELD))
    finally:
        await database.close()


def test_held_entities_are_retried_and_skipped(
    live: Service, database: str, portal: BlockingPortal, browser: Browser
) -> None:
    """Each has a row; a retry that fails again says so there (409), as does deleting the letter; a skip frees it."""
    portal.call(hold, database)
    with console_of(browser, live.url, answered=[409]) as tab:
        tab.open("messages")
        held = tab.rows("Held entities")
        expect(held).to_have_count(HELD)
        row = held.filter(has_text=str(node(1)))
        [queue] = [
            each for each in get(live.url, "/v1/dead-letters/entities")["items"] if each["entity_id"] == str(node(1))
        ]
        expect(row).to_contain_text(queue["error"])
        row.get_by_role("button", name="Retry").click()
        expect(row.get_by_role("status")).to_contain_text("409")
        letter = tab.rows("Dead letters").filter(
            has=tab.page.get_by_role("cell", name=str(queue["letter_id"]), exact=True)
        )
        letter.get_by_role("button", name="Delete").click()
        letter.get_by_role("button", name="Delete: really").click()
        expect(letter.get_by_role("status")).to_contain_text("409")
        row.get_by_role("button", name="Skip").click()
        row.get_by_role("button", name="Skip: really").click()
        expect(held).to_have_count(HELD - 1)
        ids = {each["entity_id"] for each in get(live.url, "/v1/dead-letters/entities")["items"]}
        assert ids == {str(node(number)) for number in range(HELD)} - {str(node(1))}


def test_dead_letters_are_filtered(live: Service, database: str, browser: Browser) -> None:
    """The filters of the call are in the page and in its address."""
    del database
    with console_of(browser, live.url) as tab:
        tab.open("messages")
        tab.page.get_by_label("Entity").fill(str(node(0)))
        tab.page.get_by_role("button", name="Apply").click()
        expect(tab.page).to_have_url(f"{live.url}/ui/messages?entity_id={node(0)}")
        letters = get(live.url, f"/v1/dead-letters?entity_id={node(0)}")["items"]
        expect(tab.rows("Dead letters")).to_have_count(len(letters))
