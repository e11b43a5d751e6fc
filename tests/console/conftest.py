"""A service, one Chromium for all tests of the console, and what must hold for every page that they open."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from playwright.sync_api import Browser, Locator, Page

from tests.databases import new_database
from tests.edge.browser import Browsing, chromium
from tests.making import Json
from tests.processes import Service, serving

ARRAY = 5000  # events of one request
FAILED = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")


class Console:
    """One tab of the console of a service. Its requests and complaints are looked at when it is closed."""

    def __init__(self, page: Page, url: str, *, answered: Sequence[int] = (), away: bool = False) -> None:
        self.page = page
        self.url = url
        self._seen = Browsing(page)
        self._answered = {str(status) for status in answered}
        self._away = away

    def open(self, address: str) -> None:
        """Load a page, such as `entities?state=active`, and wait until its data is there."""
        self.page.goto(f"{self.url}/ui/{address}")
        self.await_data()

    def await_data(self) -> None:
        """Wait until what the page shows is there."""
        self.page.locator("main .page").wait_for()

    def card(self, title: str) -> Locator:
        """A part of the page by its heading."""
        return self.page.get_by_role("group", name=title, exact=True).first

    def fact(self, name: str) -> str:
        """The value beside a name."""
        return (
            self.page.locator(".facts > div", has=self.page.locator("dt", has_text=re.compile(f"^{name}$")))
            .locator("dd")
            .first.inner_text()
        )

    def rows(self, label: str) -> Locator:
        """The rows of a table."""
        return self.page.get_by_role("region", name=label, exact=True).locator("tbody tr")

    def check(self) -> None:
        """Nothing came from another host, and the browser has not complained.

        It writes a line for each answer that is not a success; the statuses that the test is about are expected.
        """
        assert [url for url in self._seen.asked if not url.startswith((f"{self.url}/", "blob:"))] == []
        unexpected = []
        for text in self._seen.complaints:
            failed = FAILED.match(text)
            if failed and failed[1] in self._answered:
                continue
            if self._away and "Failed to load resource" in text:
                continue
            unexpected.append(text)
        assert unexpected == []


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The browser of all tests of this process."""
    with chromium() as started:
        yield started


Opener = Callable[..., Console]


@contextmanager
def console_of(browser: Browser, url: str, **options: object) -> Iterator[Console]:
    """A tab in a profile of its own; `answered` and `away` say which failures are expected (see Console)."""
    expected = {name: options.pop(name) for name in ("answered", "away") if name in options}
    context = browser.new_context(**options)  # type: ignore[arg-type]  # of the test: colours, sizes, permissions
    try:
        console = Console(context.new_page(), url, **expected)  # type: ignore[arg-type]  # the two above
        yield console
        console.check()
    finally:
        context.close()


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """Where async preparations run."""
    with start_blocking_portal() as started:
        yield started


@pytest.fixture(scope="module")
def database(portal: BlockingPortal) -> Iterator[str]:
    """The address of a database for one module."""
    with portal.wrap_async_context_manager(new_database()) as url:
        yield url


@pytest.fixture(scope="module")
def live(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service in a process of its own."""
    with serving(tmp_path_factory.mktemp("console"), database_url=database, log_level="error") as service:
        yield service


@pytest.fixture
def tab(browser: Browser, live: Service) -> Iterator[Console]:
    """A tab of that service's console."""
    with console_of(browser, live.url) as console:
        yield console


def send(url: str, events: Sequence[Json]) -> None:
    """Send events in arrays, each of which is applied."""
    for first in range(0, len(events), ARRAY):
        answer = httpx.post(f"{url}/v1/events", json=events[first : first + ARRAY], timeout=60)
        assert answer.status_code == 200, answer.text
        summary = answer.json()["summary"]
        assert summary["applied"] == summary["received"], summary


def get(url: str, path: str) -> Json:
    """What a call answers."""
    answer = httpx.get(f"{url}{path}", timeout=60)
    assert answer.status_code == 200, answer.text
    found: Json = json.loads(answer.content)
    return found
