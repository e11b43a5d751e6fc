"""What operators do in the console: asked twice where it cannot be undone, its result where they did it."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import asyncpg
import httpx
import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser, Locator, expect

from tests.console.conftest import Console, console_of, get, send
from tests.making import Json, event_json, life, node
from tests.processes import Service, serving

pytestmark = pytest.mark.console

CONFLICT, INVALID, GOOD, DELETED, STAYS = range(1, 6)  # dead letters
ACTS = ("Retry", "Delete", "Drop", "Forget…", "Deregister…")  # the beginnings of their buttons


async def add_letters(url: str, values: list[tuple[Json, str]]) -> None:
    """Add messages to the dead letters; their ids count from 1."""
    connection = await asyncpg.connect(url)
    try:
        for offset, (value, error) in enumerate(values):
            await connection.execute(
                'INSERT INTO dead_letters (source, topic, partition, "offset", value, headers, error) '
                "VALUES ('consumer', 'nodes', 0, $1, $2, '[]', $3)",
                offset,
                json.dumps(value).encode(),
                error,
            )
        await connection.execute(
            'INSERT INTO watermarks (topic, partition, "offset", updated_at, consumer)'
            " VALUES ('gone', 0, 17, now() - interval '1 h', 'host:1:a'), ('nodes', 0, 17, now(), 'host:1:a')"
        )
    finally:
        await connection.close()


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service, database: str, portal: BlockingPortal) -> None:
    """Some nodes that are active, and messages that failed."""
    for number in range(6):
        send(live.url, life(node(number)))
    initiated = "registration.initiated"
    values: list[tuple[Json, str]] = [
        (event_json(initiated, 1, entity_id=node(0)), "conflict: the positions can't be compared"),
        ({}, "#/type: this field is required"),
        (event_json(initiated, 1, entity_id=node(50)), "early"),
        ({"a": "<b>"}, "not an event <b>bold</b>"),
        ({}, "stays"),
    ]
    for value, _ in values:
        value.pop("position", None)
    portal.call(add_letters, database, values)


@pytest.fixture
def messages(live: Service, browser: Browser) -> Iterator[Console]:
    """The page of messages, where some calls are refused."""
    with console_of(browser, live.url, answered=[409, 422]) as tab:
        tab.open("messages")
        yield tab


def letter(tab: Console, number: int) -> Locator:
    """The row of a dead letter."""
    named = tab.page.get_by_role("cell", name=str(number), exact=True)
    return tab.rows("Dead letters").filter(has=named)


def test_letters_have_their_results_in_their_rows(live: Service, messages: Console) -> None:
    """A retry that is refused says why in its row (409, 422); what is taken in or deleted stays there as such."""
    tab = messages
    letter(tab, CONFLICT).get_by_role("button", name="Retry").click()
    expect(letter(tab, CONFLICT).get_by_role("status")).to_contain_text("409")
    letter(tab, INVALID).get_by_role("button", name="Retry").click()
    expect(letter(tab, INVALID).get_by_role("status")).to_contain_text("422")
    expect(letter(tab, INVALID).get_by_role("status")).to_contain_text("#/")
    letter(tab, GOOD).get_by_role("button", name="Retry").click()
    expect(letter(tab, GOOD).get_by_role("status")).to_have_text("applied")
    letter(tab, DELETED).get_by_role("button", name="Delete").click()
    letter(tab, DELETED).get_by_role("button", name="Delete: really").click()
    expect(letter(tab, DELETED).get_by_role("status")).to_have_text("deleted")
    tab.page.get_by_role("button", name="Refresh").click()
    expect(letter(tab, GOOD).get_by_role("status")).to_have_text("applied")
    expect(letter(tab, CONFLICT).get_by_role("status")).to_contain_text("409")
    assert [item["id"] for item in get(live.url, "/v1/dead-letters")["items"]] == [CONFLICT, INVALID, STAYS]
    assert get(live.url, f"/v1/entities/{node(50)}/state")["current_state"] == "pending_registration"


def test_chosen_letters_are_worked_off_together(live: Service, messages: Console) -> None:
    """One button works off what was chosen, each with a result of its own."""
    tab = messages
    for number in (CONFLICT, INVALID):
        letter(tab, number).get_by_role("checkbox").check()
    tab.page.get_by_role("button", name="Retry 2").click()
    for number, status in ((CONFLICT, "409"), (INVALID, "422")):
        expect(letter(tab, number).get_by_role("status")).to_contain_text(status)
    expect(letter(tab, STAYS).get_by_role("status")).to_have_count(0)


def test_a_partition_that_nobody_reads_is_dropped(live: Service, messages: Console) -> None:
    """A watermark can be dropped; one that a consumer has just written is refused in its row."""
    tab = messages
    for topic, said in (("nodes", "409"), ("gone", "dropped")):
        row = tab.rows("Partitions").filter(has=tab.page.get_by_role("cell", name=topic, exact=True))
        row.get_by_role("button", name="Drop").click()
        row.get_by_role("button", name="Drop: really").click()
        if topic == "nodes":
            expect(row.get_by_role("status")).to_contain_text(said)
        else:
            expect(row).to_have_count(0)
    assert [mark["topic"] for mark in get(live.url, "/v1/watermarks")["items"]] == ["nodes"]


def ask_twice(tab: Console, act: str, sure: str, id_: UUID) -> None:
    """Do an act on a node, to the second question."""
    tab.open(f"entity?id={id_}")
    tab.page.get_by_role("button", name=act).click()
    dialog = tab.page.get_by_role("dialog")
    dialog.get_by_label("Reason").fill("out of its rack")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog).to_contain_text("Really?")
    expect(dialog).to_contain_text("out of its rack")
    expect(dialog.get_by_role("button", name=sure)).to_be_visible()


def test_deregistering_asks_twice(live: Service, tab: Console) -> None:
    """Nothing happens before the second yes; then the node's state is another one, and the page shows it."""
    ask_twice(tab, "Deregister…", "Deregister it now", node(1))
    tab.page.get_by_role("button", name="Cancel").click()
    expect(tab.page.get_by_role("dialog")).to_have_count(0)
    assert get(live.url, f"/v1/entities/{node(1)}/state")["current_state"] == "active"
    ask_twice(tab, "Deregister…", "Deregister it now", node(1))
    tab.page.get_by_role("button", name="Deregister it now").click()
    expect(tab.page.get_by_text("Deregistered.")).to_be_visible()
    expect(tab.page.locator(".facts .state").first).to_have_text("liveness expired")
    assert get(live.url, f"/v1/entities/{node(1)}/state")["current_state"] == "liveness_expired"


def test_forgetting_asks_twice(live: Service, browser: Browser) -> None:
    """A forgotten node's page says since when; its reason is in the audit, which the system page shows."""
    with console_of(browser, live.url, answered=[410]) as tab:
        ask_twice(tab, "Forget…", "Forget it now", node(2))
        tab.page.get_by_role("button", name="Forget it now").click()
        expect(tab.page.get_by_role("group", name="Forgotten")).to_be_visible()
        assert httpx.get(f"{live.url}/v1/entities/{node(2)}").status_code == 410
        tab.open("system")
        expect(tab.rows("Audit").first).to_contain_text(str(node(2)))


def test_a_row_that_has_changed_is_left_alone(live: Service, browser: Browser) -> None:
    """An act counts for the row that was shown: a later version refuses it, and the page says so."""
    with console_of(browser, live.url, answered=[412]) as tab:
        ask_twice(tab, "Deregister…", "Deregister it now", node(3))
        send(live.url, [event_json("node.heartbeat", 6, entity_id=node(3))])
        tab.page.get_by_role("button", name="Deregister it now").click()
        expect(tab.page.get_by_role("alert")).to_contain_text("412")
        assert get(live.url, f"/v1/entities/{node(3)}/state")["current_state"] == "active"


def test_a_read_only_console_offers_no_act(database: str, browser: Browser, tmp_path: Path) -> None:
    """With PQS_CONSOLE=read-only there are no buttons that change something."""
    with (
        serving(tmp_path, database_url=database, log_level="error", console="read-only") as service,
        console_of(browser, service.url) as tab,
    ):
        tab.open("messages")
        expect(tab.page.get_by_text("read-only")).to_be_visible()
        assert tab.rows("Dead letters").count() > 0
        assert [name for name in ACTS if tab.page.get_by_role("button", name=name).count()] == []
        tab.open(f"entity?id={node(4)}")
        assert [name for name in ACTS if tab.page.get_by_role("button", name=name).count()] == []
