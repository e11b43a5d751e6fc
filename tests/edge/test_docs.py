"""`/docs` in a real browser: every call works by clicking, and nothing comes from another host."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from playwright.sync_api import Locator

from app.api.bodies import NDJSON
from app.wire.cloudevents import BATCH, STRUCTURED
from tests.api.test_openapi import document, operations
from tests.edge.browser import Browsing, browsing
from tests.edge.programs import nginx
from tests.making import Json
from tests.processes import Service

WALK = "5c1f3c1e-9d53-4c58-8a3c-1f0e2d3c4b5a"  # the node of the README's walk
# Statuses of the first click, where it is not 200. Nothing has failed, was consumed or is published yet: there is no
# dead letter, no watermark and no snapshot; a bulk call over no letters is accepted.
FIRST = {
    "commitWorkflow": 201,
    **dict.fromkeys(("retryDeadLetters", "deleteDeadLetters"), 202),
    **dict.fromkeys(("getDeadLetter", "retryDeadLetter", "deleteDeadLetter", "getDeadLetterRun"), 404),
    **dict.fromkeys(("getHeldEntity", "retryHeldEntity", "skipHeldEntity"), 404),
    **dict.fromkeys(("dropWatermark", "getSnapshots", "republishSnapshots"), 404),
}
# A workflow is read after it was written, and a node is forgotten last; the others in the order of the page.
ORDER = {"commitWorkflow": -1, "deregisterEntity": 1, "forgetEntity": 2}


def walk(url: str) -> None:
    """Send the README's events."""
    kinds = ("registration.initiated", "registration.accepted", "registration.ack_received")
    for number, kind in enumerate(kinds, start=1):
        event: Json = {
            "event_id": f"0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1a0{number}",
            "type": kind,
            "entity_id": WALK,
            "occurred_at": "2026-01-01T12:00:00Z",
            "position": {"sequence": number},
        }
        if number == 1:
            event["data"] = {"node_type": "compute"}
        assert httpx.post(f"{url}/v1/events", json=event).status_code == 200


@contextmanager
def open_page(url: str) -> Iterator[Browsing]:
    """The page of a service, once its operations are there."""
    with browsing() as browser:
        browser.page.goto(f"{url}/docs")
        browser.page.locator(".opblock").first.wait_for()
        yield browser


def section(shown: Browsing, id_: str, tag: str) -> Locator:
    """The part of the page about one operation, opened and ready to be tried."""
    block = shown.page.locator(f"#operations-{tag}-{id_}")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    return block


def execute(block: Locator) -> int:
    """Click on Execute, and return the status of the answer that is shown."""
    block.get_by_role("button", name="Execute").click()
    shown = block.locator(".live-responses-table .response .response-col_status").first
    shown.wait_for()
    found = re.match(r"\d{3}", shown.inner_text())
    assert found
    return int(found[0])


@pytest.fixture(scope="module")
def walked(live: Service) -> Service:
    """A service after the README's walk."""
    walk(live.url)
    return live


@pytest.fixture
def shown(walked: Service) -> Iterator[Browsing]:
    """The page of that service, once its operations are there."""
    with open_page(walked.url) as browser:
        yield browser


class Tried(NamedTuple):
    """What became of every operation, tried out as it is prefilled."""

    statuses: dict[str, int]  # by operation id
    prefilled: dict[tuple[str, str | None], str]  # the headers that have a value, by operation and name
    asked: list[str]
    complaints: list[str]


@pytest.fixture(scope="module")
def tried(walked: Service) -> Tried:
    """All operations of the page, tried out once."""
    calls = [(operation["operationId"], operation["tags"][0]) for _, _, operation in operations(document())]
    calls.sort(key=lambda call: ORDER.get(call[0], 0))
    statuses: dict[str, int] = {}
    prefilled: dict[tuple[str, str | None], str] = {}
    with open_page(walked.url) as browser:
        for id_, tag in calls:
            block = section(browser, id_, tag)
            for row in block.locator("tr[data-param-in=header]").all():
                if value := row.locator("input").input_value():
                    prefilled[id_, row.get_attribute("data-param-name")] = value
            statuses[id_] = execute(block)
            block.locator(".opblock-summary-control").click()  # what is open is drawn again at each change
    return Tried(statuses, prefilled, browser.asked, browser.complaints)


def test_every_call_works_at_the_first_click(tried: Tried) -> None:
    """After the README's walk each operation, tried out as it is prefilled, does what it says."""
    assert tried.statuses == {id_: FIRST.get(id_, 200) for id_ in tried.statuses}
    assert set(tried.statuses) == {operation["operationId"] for _, _, operation in operations(document())}


def test_no_optional_header_is_prefilled(tried: Tried) -> None:
    """No header is sent that the reader has not typed, but the condition without which a commit is refused."""
    assert tried.prefilled == {("commitWorkflow", "If-None-Match"): "*"}


def test_nothing_comes_from_another_host(walked: Service, tried: Tried) -> None:
    """The page loads its own files, and calls its own service."""
    assert [url for url in tried.asked if not url.startswith(f"{walked.url}/")] == []


def test_nothing_breaks_the_policy(tried: Tried) -> None:
    """The console has no error and no violation of the page's policy; the two 404 are those of dead letters."""
    assert [text for text in tried.complaints if "404 (Not Found)" not in text] == []


@pytest.mark.parametrize("media", [NDJSON, STRUCTURED, BATCH])
def test_events_are_sent_in_each_form(shown: Browsing, media: str) -> None:
    """Whatever form is chosen for the body, it is filled with an example, which the service applies."""
    block = section(shown, "postEvents", "events")
    block.get_by_label("Request content type").select_option(media)
    assert execute(block) == 200
    answer = block.locator(".live-responses-table .response").inner_text()
    assert re.search(r'"applied": [12]|"outcome": "applied"|"duplicate": [12]|"outcome": "duplicate"', answer), answer


def test_the_page_works_behind_a_prefix(walked: Service, tmp_path: Path) -> None:
    """Behind a proxy that serves the service under a path, the page loads and its calls arrive."""
    location = f"location /deep/nodes/ {{ proxy_pass {walked.url}/; proxy_set_header Host localhost; }}"
    with nginx(tmp_path, location) as proxy, open_page(f"{proxy}/deep/nodes") as browser:
        assert execute(section(browser, "countStates", "counts")) == 200
        assert [url for url in browser.asked if not url.startswith(f"{proxy}/deep/nodes/")] == []
        assert browser.complaints == []
