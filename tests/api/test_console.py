"""`/ui`: the files of the console, how they are served, and to whom."""

import re

import httpx
import pytest

from app.access.keys import make
from app.api.assets import FOREVER
from app.api.console import PAGE_NAMES, console_files
from app.settings import ConsoleMode
from tests.api.conftest import service_on

PART = re.compile(r'(?:href|src)="([0-9a-f]{16}/[^"]+)"')
IMPORT = re.compile(r'^import .* from "\./([a-z]+\.js)";$', re.MULTILINE)
LARGEST = 40_000  # bytes of all files together, in gzip


async def test_the_console_begins_with_the_overview(shared: httpx.AsyncClient) -> None:
    """`/ui` leads to the first page, by a relative address that holds behind any prefix."""
    answer = await shared.get("/ui")
    assert (answer.status_code, answer.headers["location"]) == (307, "ui/overview")
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("accept", "status"),
    [("text/html,application/xhtml+xml,*/*;q=0.8", 307), ("*/*", 404), ("application/json", 404)],
)
async def test_browsers_are_led_to_the_console(shared: httpx.AsyncClient, accept: str, status: int) -> None:
    """`/` leads whoever prefers HTML to the console; for others there is nothing."""
    answer = await shared.get("/", headers={"Accept": accept})
    assert answer.status_code == status
    assert answer.headers.get("location") == ("ui/overview" if status == 307 else None)


@pytest.mark.parametrize("page", sorted(PAGE_NAMES))
async def test_every_page_is_the_same_document(shared: httpx.AsyncClient, page: str) -> None:
    """Each page has the strict policy, nothing inline, and names only parts beside it, to be kept for ever."""
    answer = await shared.get(f"/ui/{page}")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert "://" not in answer.text
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", answer.text)
    named = PART.findall(answer.text)
    assert {each.partition("/")[2] for each in named} == {"main.js", "style.css", "icon.svg"}
    for each in named:
        part = await shared.get(f"/ui/{each}")
        assert (part.status_code, part.headers["cache-control"]) == (200, FOREVER), each


async def test_all_scripts_are_used_and_served(shared: httpx.AsyncClient) -> None:
    """The modules that the first one imports, and those that they import, are all files of the folder."""
    files = console_files()
    found, waiting = set[str](), ["main.js"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += IMPORT.findall(files.files[name].decode())
    assert found == {name for name in files.files if name.endswith(".js")}


def test_the_files_are_small() -> None:
    """All files together have at most 40 kB in gzip."""
    assert sum(map(len, console_files().coded.values())) <= LARGEST


@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_a_file_is_coded_where_that_is_accepted(shared: httpx.AsyncClient, coding: str) -> None:
    """A script comes in gzip, coded once, to those who accept that, and is the same for all."""
    files = console_files()
    answer = await shared.get(f"/ui/{files.digest}/main.js", headers={"Accept-Encoding": coding})
    assert answer.content == files.files["main.js"]
    assert answer.headers.get("content-encoding", "identity") == coding
    assert answer.headers["vary"] == "Accept-Encoding"
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize("path", ["/ui/nothing", "/ui/0123456789abcdef/main.js", "/ui/{digest}/nothing.js", "/ui/"])
async def test_other_files_are_not_answered(shared: httpx.AsyncClient, path: str) -> None:
    """Another page, a digest of other files, and any other name are a 404."""
    assert (await shared.get(path.format(digest=console_files().digest))).status_code == 404


@pytest.mark.parametrize("path", ["/", "/ui", "/ui/overview", "/ui/{digest}/main.js"])
async def test_the_console_can_be_switched_off(database_url: str, path: str) -> None:
    """With PQS_CONSOLE=off none of its paths is there."""
    async with service_on(database_url, console="off") as client:
        answer = await client.get(path.format(digest=console_files().digest), headers={"Accept": "text/html"})
        assert answer.status_code == 404


@pytest.mark.parametrize(("mode", "acts"), [(ConsoleMode.ON, "all"), (ConsoleMode.READ_ONLY, "none")])
async def test_the_page_knows_its_mode(database_url: str, mode: ConsoleMode, acts: str) -> None:
    """The document says whether the console may change anything."""
    async with service_on(database_url, console=mode) as client:
        assert f'data-acts="{acts}"' in (await client.get("/ui/overview")).text


async def test_the_files_are_for_everybody(database_url: str) -> None:
    """With access control the page and its files need no key, and no answer with data comes without one."""
    async with service_on(database_url, auth="required") as client:
        page = await client.get("/ui/overview")
        assert page.status_code == 200
        assert 'data-auth="key"' in page.text
        for each in PART.findall(page.text):
            assert (await client.get(f"/ui/{each}")).status_code == 200
        assert (await client.get("/v1/state-counts")).status_code == 401
        unknown = make(lambda count: b"\x07" * count).text
        answer = await client.get("/ui/overview", headers={"Authorization": f"Bearer {unknown}"})
        assert answer.status_code == 200
