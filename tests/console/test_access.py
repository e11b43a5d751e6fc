"""The console for everybody: WCAG 2.2 AA by axe, in light, dark and on a narrow screen, and all of it by keyboard."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal
from playwright.sync_api import Browser, expect

from tests.console.conftest import Console, console_of, get, send
from tests.console.test_acts import add_letters
from tests.making import NODE, life, node
from tests.processes import Service

pytestmark = pytest.mark.console

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
    "narrow and dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
}
PAGES = (
    "overview",
    "entities",
    f"entity?id={NODE}&at=2026-01-01T00:00:03Z&clock=occurred",
    "overdue?kind=liveness",
    "workflows",
    "workflow?key=plain",
    "changes?from=start",
    "messages",
    "system",
)


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service, database: str, portal: BlockingPortal) -> None:
    """Something on each page."""
    import httpx  # noqa: PLC0415

    send(live.url, life())
    send(live.url, [event for number in range(20) for event in life(node(number))])
    state = {"state": {"a": 1}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}
    httpx.put(f"{live.url}/v1/workflows/plain", json=state, headers={"If-None-Match": "*"})
    portal.call(add_letters, database, [({"a": 1}, "not an event")])


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core, from the wheel that has it, which is not imported."""
    spec = find_spec("axe_playwright_python")
    assert spec is not None
    assert spec.submodule_search_locations
    return (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text()


@pytest.fixture(scope="module", params=LOOKS)
def looked(request: pytest.FixtureRequest, browser: Browser, live: Service) -> Iterator[Console]:
    """A tab of one look."""
    with console_of(browser, live.url, answered=[410], **LOOKS[request.param]) as tab:
        yield tab


@pytest.mark.parametrize("page", PAGES)
def test_axe_finds_nothing(looked: Console, axe: str, page: str) -> None:
    """No rule of WCAG 2.2 AA is broken, and nothing but tables and code goes beyond a narrow screen."""
    looked.open(page)
    looked.page.evaluate(axe)
    rules = json.dumps({"runOnly": {"type": "tag", "values": RULES}})
    result = looked.page.evaluate(f"axe.run(document, {rules})")
    broken = [
        (each["id"], [(node_["html"][:200], node_["failureSummary"][:300]) for node_ in each["nodes"]])
        for each in result["violations"]
    ]
    assert broken == []
    assert looked.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_axe_finds_nothing_in_dialogs(live: Service, browser: Browser, axe: str) -> None:
    """The dialogs are accessible too."""
    with console_of(browser, live.url) as tab:
        tab.open(f"entity?id={NODE}")
        for name in ("Keys", "Forget…"):
            tab.page.get_by_role("button", name=name).click()
            tab.page.evaluate(axe)
            result = tab.page.evaluate("axe.run(document)")
            assert [each["id"] for each in result["violations"]] == []
            tab.page.keyboard.press("Escape")
            expect(tab.page.get_by_role("dialog")).to_have_count(0)


def test_keys_lead_everywhere(tab: Console) -> None:
    """`g` and a letter lead to each page, whose heading has the focus then; `?` lists the keys."""
    tab.open("overview")
    letters = {"n": "Entities", "d": "Overdue", "w": "Workflows", "c": "Changes", "m": "Messages", "s": "System"}
    for letter, title in {**letters, "o": "Overview"}.items():
        tab.page.keyboard.press("g")
        tab.page.keyboard.press(letter)
        expect(tab.page.get_by_role("heading", level=1)).to_have_text(title)
        expect(tab.page.get_by_role("heading", level=1)).to_be_focused()
    tab.page.keyboard.press("?")
    expect(tab.page.get_by_role("dialog")).to_contain_text("go to workflows")
    tab.page.keyboard.press("Escape")
    expect(tab.page.get_by_role("dialog")).to_have_count(0)


@pytest.mark.parametrize("typed", ["whole id", "its beginning", "an event of it"])
def test_go_to_finds_a_node(live: Service, tab: Console, typed: str) -> None:
    """ "Go to" takes a node's id, the beginning of one, and the id of an event."""
    row = get(live.url, f"/v1/entities/{NODE}")
    history = get(live.url, f"/v1/entities/{NODE}/history")["items"]
    text = {"whole id": str(NODE), "its beginning": str(NODE)[:11], "an event of it": history[1]["event_id"]}[typed]
    assert row["last_applied_event_id"] != text
    tab.open("overview")
    tab.page.keyboard.press("/")
    tab.page.keyboard.insert_text(text)
    tab.page.keyboard.press("Enter")
    expect(tab.page.locator(".lead code").first).to_have_text(str(NODE))


def test_go_to_says_what_there_is_not(live: Service, browser: Browser) -> None:
    """What is nothing is said, and the page stays."""
    with console_of(browser, live.url, answered=[404]) as tab:
        tab.open("overview")
        tab.page.keyboard.press("/")
        tab.page.keyboard.insert_text("nothing of this name")
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator(".said")).to_have_text("There is no node, event or workflow nothing of this name.")
        assert tab.page.url.endswith("/ui/overview")


def test_a_node_is_deregistered_by_keyboard(live: Service, tab: Console) -> None:
    """From the list to the second yes, without a pointer."""
    keyboard = tab.page.keyboard
    tab.open("overview")
    keyboard.press("g")
    keyboard.press("n")
    expect(tab.rows("Entities").first).to_be_visible()
    keyboard.press("f")
    _tab_to(tab, "Node type")
    keyboard.insert_text("compute")
    keyboard.press("Enter")
    expect(tab.page).to_have_url(f"{live.url}/ui/entities?node_type=compute")
    tab.await_data()
    first = tab.rows("Entities").locator("a.id").first.inner_text()
    _tab_to(tab, first)
    keyboard.press("Enter")
    expect(tab.page.locator(".lead code").first).to_have_text(first)
    expect(tab.page.get_by_role("button", name="Deregister…")).to_be_visible()
    _tab_to(tab, "Deregister…")
    keyboard.press("Enter")
    _tab_to(tab, "Reason")
    keyboard.insert_text("by keyboard")
    keyboard.press("Enter")
    expect(tab.page.get_by_role("dialog")).to_contain_text("Really?")
    _tab_to(tab, "Deregister it now")
    keyboard.press("Enter")
    expect(tab.page.get_by_text("Deregistered.")).to_be_visible()
    assert get(live.url, f"/v1/entities/{first}/state")["current_state"] == "liveness_expired"


def _tab_to(tab: Console, name: str) -> None:
    """Press Tab until what has this name has the focus."""
    script = "(e => e.labels?.length ? e.labels[0].textContent : e.textContent)(document.activeElement)"
    for _ in range(200):
        if str(tab.page.evaluate(script)).strip() == name:
            return
        tab.page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {name}")
