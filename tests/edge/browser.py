"""Debian's Chromium, driven by Playwright, and all that a page asked for and complained about."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from tests.edge.programs import program

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 20_000  # milliseconds for what must appear


class Browsing:
    """One page, the URLs that it loaded, and what its console said: errors, and violations of its policy."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.asked: list[str] = []
        self.complaints: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("request", self._on_request)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _on_console(self, said: ConsoleMessage) -> None:
        if said.type == "error":
            self.complaints.append(f"{said.text} ({said.location['url']})")

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.asked.append(request.url)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. The test is skipped where no Chromium is installed."""
    executable = program(*NAMES)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browsing() -> Iterator[Browsing]:
    """An empty page in a browser of its own."""
    with chromium() as browser:
        yield Browsing(browser.new_page())
