"""nginx in front of the service: with a path prefix and compression, and as a shared cache with its defaults."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.edge.programs import nginx
from tests.making import NODE, event_json, life, node
from tests.processes import Service

CACHE_SECONDS = 600  # that a cache with a lifetime of its own would keep an answer


@pytest.fixture
def prefixed(live: Service, tmp_path: Path) -> Iterator[str]:
    """The service under /pqs/, behind an nginx that compresses every type."""
    gzip = "gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any;"
    with nginx(tmp_path, f"location /pqs/ {{ proxy_pass {live.url}/; }}", gzip) as url:
        yield f"{url}/pqs"


@pytest.fixture
def cached(live: Service, tmp_path: Path) -> Iterator[str]:
    """The service behind a cache that invents lifetimes for answers without one."""
    valid = (
        f"proxy_cache pqs; proxy_cache_valid any {CACHE_SECONDS}s; add_header X-Cache $upstream_cache_status always;"
    )
    zone = f"proxy_cache_path {tmp_path}/cache keys_zone=pqs:1m;"
    with nginx(tmp_path, f"location / {{ proxy_pass {live.url}; {valid} }}", zone) as url:
        yield url


def test_pages_stay_under_the_prefix(prefixed: str) -> None:
    """A client that follows the links of a list behind a prefix gets the whole list."""
    events = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(5)]
    assert httpx.post(f"{prefixed}/v1/events", json=events).status_code == 200
    url: str | None = f"{prefixed}/v1/entities?limit=2"
    found: list[str] = []
    while url is not None:
        answer = httpx.get(url)
        assert answer.status_code == 200, url
        found += [item["entity_id"] for item in answer.json()["items"]]
        link = answer.links.get("next")
        url = None if link is None else urljoin(url, link["url"])
    assert found == sorted(found)
    assert {str(node(number)) for number in range(5)} <= set(found)


def test_a_tag_that_a_proxy_has_weakened(prefixed: str) -> None:
    """nginx weakens tags of compressed answers: reads accept such a tag, and commits explain why they refuse it."""
    assert httpx.post(f"{prefixed}/v1/events", json=life()).status_code == 200
    answer = httpx.get(f"{prefixed}/v1/entities/{NODE}", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["etag"].startswith('W/"')
    again = httpx.get(f"{prefixed}/v1/entities/{NODE}", headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


def test_a_cache_never_serves_an_old_row(live: Service, cached: str) -> None:
    """Through a cache, changed and new rows are visible at once."""
    entity = f"/v1/entities/{node(77)}"
    assert httpx.get(f"{cached}{entity}").status_code == 404
    for sequence, event in enumerate(life(node(77)), start=1):
        assert httpx.post(f"{live.url}/v1/events", json=event).status_code == 200
        for path in (entity, f"{entity}/state", "/v1/entities", "/v1/state-counts"):
            answer = httpx.get(f"{cached}{path}")
            assert (answer.status_code, answer.headers["x-cache"] == "HIT") == (200, False), path
        assert httpx.get(f"{cached}{entity}").json()["version"] == sequence


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/metrics", "/openapi.json", "/v1/nothing", "/v1/entities?limit=0"]
)
def test_a_cache_keeps_nothing_else(cached: str, path: str) -> None:
    """A cache fetches health, errors and documents anew each time."""
    for _ in range(2):
        assert httpx.get(f"{cached}{path}").headers["x-cache"] == "MISS"
