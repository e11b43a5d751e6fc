"""The pages of entities: what they show is what the API answers."""

from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from tests.console.conftest import Console, console_of, get, send
from tests.making import NODE, event_json, life, node
from tests.processes import Service

pytestmark = pytest.mark.console

NODES = 250


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service) -> None:
    """A node that is active, and many that have begun."""
    send(live.url, life())
    send(live.url, [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(NODES)])


def test_pages_go_through_all_rows(live: Service, tab: Console) -> None:
    """The pages show each row once, in the order of the API, and the browser's way back leads to the page before."""
    tab.open("entities")
    seen: list[str] = []
    while True:
        seen += tab.rows("Entities").locator("a.id").all_inner_texts()
        following = tab.page.get_by_role("link", name="Next page")
        if not following.count():
            break
        first = seen[-1]
        following.click()
        expect(tab.page.get_by_role("link", name=first)).to_have_count(0)
        tab.await_data()
    answered = [row["entity_id"] for row in get(live.url, "/v1/entities?limit=1000")["items"]]
    assert seen == answered
    assert len(seen) == NODES + 1
    tab.page.go_back()
    expect(tab.page.get_by_role("link", name=seen[100])).to_be_visible()


def test_filters_are_in_the_address(live: Service, tab: Console) -> None:
    """A filter narrows the list, is in the address, and an address with filters shows the same list."""
    tab.open("entities")
    tab.page.get_by_role("checkbox", name="active", exact=True).check()
    tab.page.get_by_label("Node type").fill("compute")
    tab.page.get_by_role("button", name="Apply").click()
    expect(tab.rows("Entities")).to_have_count(1)
    assert tab.page.url == f"{live.url}/ui/entities?state=active&node_type=compute"
    tab.open("entities?state=active&state=rejected&node_type=compute")
    assert tab.rows("Entities").locator("a.id").all_inner_texts() == [str(NODE)]
    assert tab.page.get_by_role("checkbox", name="rejected").is_checked()


def test_a_refused_filter_is_explained(live: Service, browser: Browser) -> None:
    """A filter that the API refuses is answered with the API's own words, and the filters stay."""
    with console_of(browser, live.url, answered=[422]) as tab:
        tab.page.goto(f"{live.url}/ui/entities?updated_before={quote('yesterday')}")
        expect(tab.page.get_by_role("alert")).to_contain_text("#/query/updated_before")


def test_an_entity_is_shown(live: Service, tab: Console) -> None:
    """The page of a node has its state, position, capabilities, history and its row as the service wrote it."""
    tab.open(f"entity?id={NODE}")
    row = get(live.url, f"/v1/entities/{NODE}")
    assert tab.fact("State") == "active"
    assert tab.fact("Stands at") == "sequence 5"
    assert tab.fact("Version") == '5 ETag "5"'
    assert tab.page.locator(".timeline li").count() == len(get(live.url, f"/v1/entities/{NODE}/history")["items"])
    shown = tab.page.get_by_role("region", name="JSON", exact=True).inner_text()
    assert f'"last_applied_event_id": "{row["last_applied_event_id"]}"' in shown
