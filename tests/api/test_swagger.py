"""`/docs`: a page of our own, with the files of Swagger UI that this release was tested with."""

import re
import sys

import httpx
import pytest

from app.api import swagger
from app.api.assets import FOREVER

PART = re.compile(r'(?:href|src)="(docs/[^"]+)"')


async def test_the_page_names_only_parts_beside_it(shared: httpx.AsyncClient) -> None:
    """Every file that the page names is relative to it, is answered, and may be kept for ever."""
    page = await shared.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "://" not in page.text
    named = PART.findall(page.text)
    assert {name.rpartition("/")[2] for name in named} == {*swagger.DIGESTS, swagger.OWN}
    for name in named:
        part = await shared.get(f"/{name}")
        assert (part.status_code, part.headers["cache-control"]) == (200, FOREVER), name


async def test_the_page_has_a_strict_policy(shared: httpx.AsyncClient) -> None:
    """The policy of the page allows its own scripts, styles, images and calls, nothing inline, and no other host."""
    policy = (await shared.get("/docs")).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy


@pytest.mark.parametrize("coding", ["gzip", "identity"])
async def test_a_part_is_coded_where_that_is_accepted(shared: httpx.AsyncClient, coding: str) -> None:
    """The script comes in gzip, a quarter of its size, to those who accept that, and is the same for all."""
    name = "swagger-ui-bundle.js"
    path = next(each for each in PART.findall((await shared.get("/docs")).text) if each.endswith(name))
    answer = await shared.get(f"/{path}", headers={"Accept-Encoding": coding})
    assert answer.content == swagger.assets().files[name]
    assert answer.headers.get("content-encoding", "identity") == coding
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("path", ["/docs/0123456789abcdef/page.js", "/docs/0123456789abcdef/../swagger.py", "/docs/"])
async def test_other_files_are_not_answered(shared: httpx.AsyncClient, path: str) -> None:
    """A digest of other files, and any other name, is a 404."""
    assert (await shared.get(path)).status_code == 404


async def test_files_of_another_version_are_not_served(
    shared: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the wheel's files are not those of this release, the page is a 503 that names the file."""
    swagger.assets.cache_clear()
    monkeypatch.setitem(swagger.DIGESTS, "swagger-ui.css", "0" * 64)
    answer = await shared.get("/docs")
    assert answer.status_code == 503
    assert "swagger-ui.css" in answer.json()["detail"]


async def test_the_wheel_is_not_imported(shared: httpx.AsyncClient) -> None:
    """The files are found without running the wheel's code."""
    assert (await shared.get("/docs")).status_code == 200
    assert swagger.PACKAGE not in sys.modules
