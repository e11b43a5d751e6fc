"""The console while it stays open: events as they come, focus, scroll, tabs, and a service that is away."""

import re
import signal
import time
from pathlib import Path
from uuid import UUID

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.console.conftest import Console, console_of, send
from tests.making import event_json, life, node
from tests.processes import Service, serving

pytestmark = pytest.mark.console

INTERVAL = 1.0  # seconds, the shortest that the console offers
SLACK = 2.0  # seconds for a busy machine, and for the overview, which is up to a second old
NODES = 120
FIRST = UUID("00000000-0000-4000-8000-000000000001")  # before those of all other nodes
TABS = 10
TOP = "element => element.getBoundingClientRect().top"


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service) -> None:
    """Some nodes."""
    send(live.url, [event for number in range(NODES) for event in life(node(number))])


def pace(tab: Console, seconds: int) -> None:
    """Set the interval; 0 is never."""
    tab.page.locator("select[name=interval]").select_option(str(seconds))


def test_an_event_shows_within_one_interval(live: Service, tab: Console) -> None:
    """A new node is in the overview, and a change in the feed, after one interval, and in no page loaded anew."""
    tab.open("overview")
    pace(tab, 1)
    total = tab.page.locator("[data-number=total]")
    before = int(total.inner_text().replace(",", ""))
    began = time.monotonic()
    send(live.url, [event_json("registration.initiated", 1, entity_id=node(9000))])
    expect(total).to_have_text(str(before + 1), timeout=10_000)
    assert time.monotonic() - began < INTERVAL + SLACK
    tab.open("changes")
    expect(tab.page.get_by_text("Live.")).to_be_visible()
    began = time.monotonic()
    send(live.url, [event_json("registration.accepted", 2, entity_id=node(9000))])
    expect(tab.rows("Changes").first).to_contain_text(str(node(9000)), timeout=10_000)
    assert time.monotonic() - began < INTERVAL + SLACK


def test_a_pause_keeps_what_is_there(live: Service, tab: Console) -> None:
    """While the feed is paused nothing moves; then what came meanwhile is shown."""
    tab.open("changes")
    pace(tab, 1)
    tab.page.get_by_role("button", name="Pause").click()
    send(live.url, [event_json("registration.initiated", 1, entity_id=node(9100))])
    tab.page.wait_for_timeout(1500)
    expect(tab.rows("Changes")).to_have_count(0)
    tab.page.get_by_role("button", name="Go on").click()
    expect(tab.rows("Changes")).to_have_count(1)


def test_focus_scroll_and_typing_stay(live: Service, tab: Console) -> None:
    """Answers that come do not take the focus, the place in the page, or what somebody is typing."""
    tab.open("entities?limit=100")
    pace(tab, 1)
    box = tab.page.get_by_label("Node type")
    box.fill("half a wo")
    linked = tab.rows("Entities").nth(60).locator("a.id")
    linked.focus()
    id_ = linked.inner_text()
    tab.page.evaluate("scrollTo(0, 900)")
    place = linked.evaluate(TOP)
    # The first id of all, so every row moves down by one.
    with tab.page.expect_response(re.compile("/v1/entities")):
        send(live.url, [event_json("registration.initiated", 1, entity_id=FIRST)])
    expect(tab.rows("Entities").first).to_contain_text(str(FIRST))
    assert tab.page.evaluate("document.activeElement.textContent") == id_
    # The browser keeps what is seen where it is seen, although a row came in above it.
    assert tab.page.locator("a.id", has_text=id_).evaluate(TOP) == pytest.approx(place, abs=1)
    assert box.input_value() == "half a wo"


def test_a_hidden_page_asks_for_nothing(live: Service, browser: Browser) -> None:
    """While it is hidden the console makes no call; it asks at once when it is seen again."""
    with console_of(browser, live.url) as tab:
        tab.page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => window.isHidden ?? false})")
        tab.open("overview")
        pace(tab, 1)
        tab.page.evaluate("window.isHidden = true; document.dispatchEvent(new Event('visibilitychange'))")
        tab.page.wait_for_timeout(500)  # what was under way
        calls: list[str] = []
        tab.page.on("request", lambda request: calls.append(request.url))
        tab.page.wait_for_timeout(2500)
        assert calls == []
        with tab.page.expect_request(re.compile("/v1/overview"), timeout=1000):
            tab.page.evaluate("window.isHidden = false; document.dispatchEvent(new Event('visibilitychange'))")


def test_by_hand_asks_only_when_told(tab: Console) -> None:
    """At no interval nothing is asked until somebody does; the choice is kept for the next visit."""
    tab.open("overview")
    pace(tab, 0)
    tab.page.wait_for_timeout(300)
    calls: list[str] = []
    tab.page.on("request", lambda request: calls.append(request.url))
    tab.page.wait_for_timeout(1500)
    assert calls == []
    with tab.page.expect_request(re.compile("/v1/overview")):
        tab.page.get_by_role("button", name="Refresh").click()
    tab.open("overview")
    assert tab.page.locator("select[name=interval]").input_value() == "0"


def test_a_service_that_is_away_leaves_stale_numbers(database: str, browser: Browser, tmp_path: Path) -> None:
    """When the service stops, the numbers stay, marked with their time; when it is back, so are new ones."""
    with serving(tmp_path, database_url=database, log_level="error") as service:
        port = service.url.rpartition(":")[2]
        with console_of(browser, service.url, away=True) as tab:
            tab.open("overview")
            pace(tab, 1)
            total = tab.page.locator("[data-number=total]").inner_text()
            service.signal(signal.SIGTERM)
            service.await_end()
            expect(tab.page.locator(".stale")).to_contain_text("The service does not answer: these numbers are from")
            expect(tab.page.locator("main.away [data-number=total]")).to_have_text(total)
            with serving(tmp_path, "--port", port, database_url=database, log_level="error"):
                expect(tab.page.locator(".stale")).to_have_count(0, timeout=10_000)
                expect(tab.page.locator("[data-number=total]")).to_have_text(total)


def test_ten_tabs_live_side_by_side(live: Service, browser: Browser) -> None:
    """Ten tabs of one browser all keep up, over its few connections, and the service answers others meanwhile."""
    context = browser.new_context()
    tabs = [Console(context.new_page(), live.url) for _ in range(TABS)]
    try:
        for number, tab in enumerate(tabs):
            tab.open(("overview", "changes", "entities?limit=50", "overdue", "workflows")[number % 5])
            pace(tab, 1)
        before = httpx.get(f"{live.url}/v1/state-counts").json()["total"]
        send(live.url, [event_json("registration.initiated", 1, entity_id=node(9200))])
        for number, tab in enumerate(tabs):
            if number % 5 == 0:
                expect(tab.page.locator("[data-number=total]")).to_have_text(str(before + 1), timeout=10_000)
            if number % 5 == 1:
                expect(tab.rows("Changes").first).to_contain_text(str(node(9200)), timeout=10_000)
        for tab in tabs:
            expect(tab.page.locator(".stale")).to_have_count(0)
            tab.check()
    finally:
        context.close()
