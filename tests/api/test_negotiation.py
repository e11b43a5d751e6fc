"""Content negotiation: content types of requests, and the `Accept` header."""

import json

import httpx
import pytest

from tests.making import NODE, event_json, life, node

JSON = "application/json"
NDJSON = "application/x-ndjson"
EVENT = json.dumps(event_json("node.heartbeat", 1, entity_id=node(1)))
LOOKUP = json.dumps({"entity_ids": []})


@pytest.fixture(scope="module")
async def active(shared: httpx.AsyncClient) -> httpx.AsyncClient:
    """A service with one active node."""
    await shared.post("/v1/events", json=life())
    return shared


# --- What is wanted ------------------------------------------------------------------------------------------------

# An Accept header, and whether it prefers the other type, here written OTHER, to JSON.
ACCEPT = {
    None: False,
    "": False,
    "*/*": False,
    "OTHER": True,
    "other": True,
    "OTHER; charset=utf-8": True,
    "application/json": False,
    "OTHER, application/json": False,
    "application/json, OTHER": False,
    "OTHER, */*;q=0.1": True,
    "OTHER;q=0.5, application/json": False,
    "OTHER, application/json;q=0.9": True,
    "OTHER;q=0.2, application/json;q=0.1": True,
    "OTHER;q=0.1, application/json;q=0.2": False,
    "OTHER;q=0": False,
    "OTHER;q=0, */*": False,
    "*/*, application/json;q=0.5": True,
    "*/*;q=0.5, application/json;q=0": True,
    "application/json;q=0": False,
    "OTHER; q=nonsense": False,
    "image/png": False,
    "text/html, OTHER;q=0.3": True,
    ",,OTHER,": True,
}


def accept_of(header: str | None, other: str) -> dict[str, str]:
    """The headers of a request with this `Accept`."""
    if header is None:
        return {"Accept": ""}
    return {"Accept": header.replace("OTHER", other).replace("other", other.upper())}


@pytest.mark.parametrize("header", ACCEPT)
async def test_a_state_comes_as_it_is_wanted(active: httpx.AsyncClient, header: str | None) -> None:
    """The state comes as text if `Accept` prefers `text/plain` to JSON, by quality and most specific range."""
    headers = accept_of(header, "text/plain")
    answer = await active.get(f"/v1/entities/{NODE}/state", headers=headers)
    wanted = "text/plain" if ACCEPT[header] else JSON
    assert (answer.status_code, answer.headers["content-type"].partition(";")[0]) == (200, wanted)
    assert answer.headers["vary"].split(", ")[0] == "Accept"


@pytest.mark.parametrize("header", ACCEPT)
async def test_a_list_comes_as_it_is_wanted(active: httpx.AsyncClient, header: str | None) -> None:
    """A list comes as a stream of lines if `Accept` prefers NDJSON to JSON."""
    answer = await active.get("/v1/entities", headers=accept_of(header, NDJSON))
    assert (answer.status_code, answer.headers["content-type"]) == (200, NDJSON if ACCEPT[header] else JSON)
    assert answer.headers["vary"].split(", ")[0] == "Accept"


@pytest.mark.parametrize(("header", "media"), [("text/*", "text/plain"), ("text/*;q=0.4, application/*;q=0.5", JSON)])
async def test_a_range_is_wanted(active: httpx.AsyncClient, header: str, media: str) -> None:
    """A range such as `text/*` accepts each type in it."""
    answer = await active.get(f"/v1/entities/{NODE}/state", headers={"Accept": header})
    assert answer.headers["content-type"].partition(";")[0] == media


async def test_several_accept_lines_are_one(active: httpx.AsyncClient) -> None:
    """`Accept` may be spread over several header lines."""
    headers = [("Accept", "application/json;q=0.5"), ("Accept", "text/plain")]
    answer = await active.get(f"/v1/entities/{NODE}/state", headers=headers)
    assert answer.text == "active"


@pytest.mark.parametrize("accept", ["text/plain", NDJSON, "text/html"])
@pytest.mark.parametrize("path", [f"/v1/entities/{node(404)}/state", "/v1/entities?limit=0", "/v1/nodes"])
async def test_an_error_is_a_problem_whatever_is_wanted(shared: httpx.AsyncClient, path: str, accept: str) -> None:
    """Errors come as problem details even if `Accept` asks for another type."""
    answer = await shared.get(path, headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/problem+json"


# --- What is sent --------------------------------------------------------------------------------------------------

TAKEN = ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", " application/json ;a=b"]
REFUSED = [
    "text/plain",
    "text/json",
    "text/csv; charset=utf-8",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/xml",
    "application/ndjson",
    "application/octet-stream",
    "application/jsonx",
    "json",
    "*/*",
    "",
]


@pytest.mark.parametrize("media", TAKEN)
@pytest.mark.parametrize(("path", "body"), [("/v1/events", EVENT), ("/v1/entities/lookup", LOOKUP)])
async def test_json_is_taken(shared: httpx.AsyncClient, path: str, body: str, media: str) -> None:
    """A JSON content type is accepted with any parameters and in any case."""
    answer = await shared.post(path, content=body, headers={"Content-Type": media})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "body"), [("/v1/events", EVENT), ("/v1/entities/lookup", LOOKUP)])
async def test_a_body_without_a_type_is_refused(shared: httpx.AsyncClient, path: str, body: str) -> None:
    """A body without a content type, which a page of any origin can send, is a 415 that names the accepted types."""
    answer = await shared.post(path, content=body)
    assert "content-type" not in answer.request.headers
    assert answer.status_code == 415, answer.text
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("media", REFUSED)
@pytest.mark.parametrize(("path", "body"), [("/v1/events", EVENT), ("/v1/entities/lookup", LOOKUP)])
async def test_other_types_are_415(shared: httpx.AsyncClient, path: str, body: str, media: str) -> None:
    """A body whose content type is not JSON is a 415 that says what to send."""
    answer = await shared.post(path, content=body, headers={"Content-Type": media})
    assert answer.status_code == 415, answer.text
    assert list(answer.json()) == ["type", "title", "status", "detail", "instance"]
    assert JSON in answer.json()["detail"]


async def test_a_lookup_is_no_stream(shared: httpx.AsyncClient) -> None:
    """NDJSON is accepted for events only."""
    answer = await shared.post("/v1/entities/lookup", content=LOOKUP, headers={"Content-Type": NDJSON})
    assert answer.status_code == 415


@pytest.mark.parametrize("media", [NDJSON, "application/x-ndjson; charset=utf-8", "Application/X-NDJSON"])
async def test_lines_are_taken(shared: httpx.AsyncClient, media: str) -> None:
    """An NDJSON content type is accepted with any parameters and in any case."""
    answer = await shared.post("/v1/events", content=EVENT, headers={"Content-Type": media})
    assert (answer.status_code, answer.headers["content-type"]) == (200, NDJSON)


@pytest.mark.parametrize("prefix", ["", "?domain=registration"])
async def test_a_read_evaluates_if_match(client: httpx.AsyncClient, prefix: str) -> None:
    """GET or HEAD with an `If-Match` that does not name the row's version is a 412, on both paths of answering."""
    assert (await client.post("/v1/events", json=event_json("registration.initiated", 1))).status_code == 200
    path = f"/v1/entities/{NODE}{prefix}"
    for method in ("GET", "HEAD"):
        assert (await client.request(method, path, headers={"If-Match": '"1"'})).status_code == 200
        assert (await client.request(method, path, headers={"If-Match": "*"})).status_code == 200
        stale = await client.request(method, path, headers={"If-Match": '"7"', "If-None-Match": '"1"'})
        assert (stale.status_code, stale.headers["etag"]) == (412, '"1"')
    weak = await client.get(path, headers={"If-Match": 'W/"1"'})
    assert weak.status_code == 412
    assert 'W/"1" in If-Match is weak' in weak.json()["detail"]
    assert "proxy that compresses" in weak.json()["detail"]


async def test_a_weak_tag_is_refused_in_words(client: httpx.AsyncClient) -> None:
    """A commit with a weak tag, as compressing proxies make them, gets an answer that explains the fault."""
    body = {"state": {"a": 1}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}
    assert (await client.put("/v1/workflows/weak", json=body, headers={"If-None-Match": "*"})).status_code == 201
    refused = await client.put("/v1/workflows/weak", json=body, headers={"If-Match": 'W/"1"'})
    assert refused.status_code == 412
    assert 'send "1"' in refused.json()["detail"]
