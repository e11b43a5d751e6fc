"""Addresses: deep links, the way back and forward, a prefix of a proxy, and the way from `/`."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.console.conftest import Console, console_of, send
from tests.edge.programs import nginx
from tests.making import NODE, life, node
from tests.processes import Service

pytestmark = pytest.mark.console

NODES = 150
TITLES = ("overview", "entities", "overdue", "workflows", "changes", "messages", "system")


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service) -> None:
    """A node that is active among others."""
    send(live.url, life())
    send(live.url, [event for number in range(NODES) for event in life(node(number))[:2]])


def test_the_way_begins_at_the_root(live: Service, tab: Console) -> None:
    """A browser that opens the service's bare address is at the overview."""
    tab.page.goto(live.url)
    tab.await_data()
    assert tab.page.url == f"{live.url}/ui/overview"


def test_back_and_forward_lead_through_pages(live: Service, tab: Console) -> None:
    """Every page, filter and page of a list is a step of the browser's history, at the place where it was left."""
    tab.open("overview")
    tab.page.locator("svg.states a.accepted").click()
    expect(tab.rows("Entities")).to_have_count(100)
    tab.page.evaluate("scrollTo(0, 1200)")
    tab.page.get_by_role("link", name="Next page").click()
    expect(tab.rows("Entities")).to_have_count(NODES - 100)
    tab.rows("Entities").locator("a.id").first.click()
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("Entity")
    tab.page.go_back()
    expect(tab.rows("Entities")).to_have_count(NODES - 100)
    tab.page.go_back()
    expect(tab.rows("Entities")).to_have_count(100)
    assert tab.page.evaluate("scrollY") > 600
    assert tab.page.get_by_role("checkbox", name="accepted").is_checked()
    tab.page.go_back()
    expect(tab.page.get_by_role("heading", level=1)).to_have_text("Overview")
    tab.page.go_forward()
    expect(tab.rows("Entities")).to_have_count(100)


def test_a_deep_link_opens_what_it_names(live: Service, tab: Console) -> None:
    """An address in another tab shows the same: a node at a moment."""
    tab.open(f"entity?id={NODE}&at=2026-01-01T00:00:03Z&clock=occurred")
    assert tab.fact("At that moment") == "awaiting ack"
    assert tab.page.get_by_role("textbox", name="Moment").input_value() == "2026-01-01T00:00:03Z"


def test_a_moment_is_looked_at(live: Service, tab: Console) -> None:
    """From the history one step leads to the state after a change."""
    tab.open(f"entity?id={NODE}")
    tab.page.locator(".timeline li").nth(1).get_by_role("link", name="then").click()
    expect(tab.page.locator(".facts > div", has_text="At that moment").locator("dd")).to_have_text("active")


def test_everything_works_behind_a_prefix(live: Service, browser: Browser, tmp_path: Path) -> None:
    """Behind a proxy that serves the service under a path, every page, file and call stays under it."""
    location = f"location /deep/nodes/ {{ proxy_pass {live.url}/; proxy_set_header Host localhost; }}"
    with nginx(tmp_path, location) as proxy, console_of(browser, f"{proxy}/deep/nodes") as tab:
        tab.page.goto(f"{proxy}/deep/nodes/ui")
        tab.await_data()
        assert tab.page.url == f"{proxy}/deep/nodes/ui/overview"
        for title in TITLES:
            tab.page.get_by_role("navigation", name="Pages of the console").get_by_role(
                "link", name=title.capitalize()
            ).click()
            expect(tab.page.get_by_role("heading", level=1)).to_have_text(title.capitalize())
            tab.await_data()
        tab.page.goto(f"{proxy}/deep/nodes/")
        tab.await_data()
        assert tab.page.url == f"{proxy}/deep/nodes/ui/overview"
