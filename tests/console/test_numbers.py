"""The numbers of every page are those of the API, at 20,000 rows, and at a million (`make test-console ROWS=…`)."""

import os
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Locator, expect

from tests.console.conftest import Console, get
from tests.making import Json, at, event_json, node
from tests.processes import Service

pytestmark = pytest.mark.console

ROWS = int(os.environ.get("TEST_CONSOLE_ROWS", "20000"))
ARRAY = 10_000  # events of one request
STATES = (
    *("active",) * 9,
    *("pending_registration", "accepted", "awaiting_ack", "ack_received", "rejected", "ack_timed_out"),
    "liveness_expired",
)
WORKFLOWS = 120


def row(number: int) -> Json:
    """An event that writes one whole row; some deadlines have passed."""
    state = STATES[number % len(STATES)]
    data: Json = {
        "current_state": state,
        "node_type": ("compute", "storage", "gateway")[number % 3],
        "registered_at": at(0),
        "capabilities": {"postgres": number % 5 == 0},
    }
    later = at(number) if number % 100 < 3 else "2999-01-01T00:00:00Z"
    if state in {"accepted", "awaiting_ack"}:
        data["ack_deadline"] = later
    if state == "active":
        data["liveness_deadline"] = later
    return event_json("registration.recorded", 1, entity_id=node(number), data=data)


@pytest.fixture(scope="module", autouse=True)
def rows(live: Service) -> Iterator[None]:
    """All rows, and some workflows."""
    with httpx.Client(base_url=live.url, timeout=120) as client:
        for first in range(0, ROWS, ARRAY):
            events = [row(number) for number in range(first, min(first + ARRAY, ROWS))]
            assert client.post("/v1/events", json=events).json()["summary"]["applied"] == len(events)
        for number in range(WORKFLOWS):
            state = {"state": {"step": number}, "provenance": {"effect_id": "e", "timestamp": at(number)}}
            assert client.put(f"/v1/workflows/w{number}", json=state, headers={"If-None-Match": "*"}).is_success
        yield


def text(place: Locator) -> str:
    """The text of a place in a drawing."""
    return place.text_content() or ""


def changes(url: str, query: str) -> list[Json]:
    """All changes of the feed that match."""
    found: list[Json] = []
    after, behind = "start", True
    while behind:
        page = get(url, f"/v1/changes?after={after}&limit=1000&{query}")
        found += page["items"]
        after, behind = page["next"], not page["caught_up"]
    return found


def shown(tab: Console, name: str) -> int:
    """A number of the overview."""
    return int(re.sub(r"\D", "", tab.page.locator(f"[data-number={name}]").inner_text()))


def test_the_overview_counts_as_the_api(live: Service, tab: Console) -> None:
    """Totals, the number in each state of the diagram, and the overdue nodes are those of the calls."""
    tab.open("overview")
    counts = get(live.url, "/v1/state-counts")
    assert shown(tab, "total") == counts["total"] == ROWS
    boxes = {
        text(box.locator(".name")).replace(" ", "_"): int(text(box.locator(".count")).replace(",", ""))
        for box in tab.page.locator("svg.states a").all()
    }
    assert boxes == counts["counts"]
    for kind in ("ack", "liveness"):
        overview = get(live.url, "/v1/overview")["overdue"][kind]
        listed = get(live.url, f"/v1/overdue/{kind}?limit=1000")["items"]
        assert shown(tab, f"overdue-{kind}") == overview["count"] == len(listed)
    assert shown(tab, "events") == sum(
        sum(count for name, count in minute.items() if name != "began_at")
        for minute in get(live.url, "/v1/overview")["operations"]["minutes"]
    )


def test_the_list_has_the_rows_of_the_api(live: Service, tab: Console) -> None:
    """A page of the list, with filters and without, has the rows of the call in its order."""
    for query in ("limit=1000", "state=rejected&node_type=storage", "capability=postgres&limit=50"):
        tab.open(f"entities?{query}")
        answered = [item["entity_id"] for item in get(live.url, f"/v1/entities?{query}")["items"]]
        assert tab.rows("Entities").locator("a.id").all_inner_texts() == answered


@pytest.mark.parametrize("kind", ["ack", "liveness"])
def test_the_overdue_nodes_are_those_of_the_api(live: Service, tab: Console, kind: str) -> None:
    """The list at a moment has the rows of the call, with the time since each deadline at that moment."""
    moment = "2026-01-01T02:00:00Z"
    answered = get(live.url, f"/v1/overdue/{kind}?as_of={moment}&limit=20")["items"]
    tab.open(f"overdue?kind={kind}&as_of={moment}&limit=20")
    assert tab.rows("Overdue nodes").locator("a.id").all_inner_texts() == [item["entity_id"] for item in answered]
    first = tab.rows("Overdue nodes").first.locator("td").first.inner_text()
    seconds = int(answered[0]["overdue_seconds"])
    assert first == f"{seconds // 3600} h" + (f" {seconds % 3600 // 60} min" if seconds % 3600 >= 60 else "")


def test_the_overdue_time_goes_on(live: Service, tab: Console) -> None:
    """Without a moment the list says how long nodes are overdue now, by the service's clock, and counts on."""
    tab.open("overdue?kind=ack")
    count = len(get(live.url, "/v1/overdue/ack?limit=100")["items"])
    assert tab.rows("Overdue nodes").count() == count
    tab.page.goto(f"{live.url}/ui/overdue?kind=liveness&as_of=2026-01-01T00:00:05Z")
    tab.await_data()
    assert tab.rows("Overdue nodes").first.locator("td").first.inner_text().endswith(" s")


def test_the_workflows_are_those_of_the_api(live: Service, tab: Console) -> None:
    """The list is newest first, in pages, and narrowed by the beginning of the key."""
    tab.open("workflows")
    answered = get(live.url, "/v1/workflows?order=newest")
    assert tab.rows("Workflows").locator("a.key").all_inner_texts() == [
        item["workflow_key"] for item in answered["items"]
    ]
    tab.page.get_by_label("Key begins with").fill("w11")
    tab.page.get_by_role("button", name="Apply").click()
    expect(tab.rows("Workflows")).to_have_count(11)


def test_the_system_page_says_what_the_api_says(live: Service, tab: Console) -> None:
    """Readiness, version, settings and audit are those of the calls."""
    tab.open("system")
    assert tab.fact("Schema") == get(live.url, "/readyz")["revision"]
    system = get(live.url, "/v1/system")
    assert tab.fact("Version") == system["version"]
    assert tab.rows("Settings").locator("td:first-child").all_inner_texts() == [
        each["name"] for each in system["settings"]
    ]
    assert "postgresql://" not in tab.page.content()
    assert tab.rows("Pools").count() == len(system["pools"])


def test_the_changes_are_those_of_the_api(live: Service, tab: Console) -> None:
    """From the oldest on, the page shows the changes of the feed, the newest on top."""
    tab.open("changes?from=start&node_type=gateway&state=rejected")
    expected = [change["entity_id"] for change in reversed(changes(live.url, "node_type=gateway&state=rejected"))]
    assert expected
    expect(tab.page.get_by_text("Live.")).to_be_visible(timeout=60_000)
    assert tab.rows("Changes").locator("a.id").all_inner_texts() == expected[:500]
