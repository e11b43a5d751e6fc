"""Layers around every request: correlation ids, the log, metrics, and draining of refused bodies."""

import json
import logging
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx
import pytest

from app.api.context import correlation_id
from tests.making import Json, event_json, node

HEADER = "X-Correlation-ID"
GIVEN = "3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d"
OWN = "9c1d8a37-52c1-4d0e-8d7e-6a6f0b1f7e55"
NDJSON = "application/x-ndjson"

CALLS: dict[str, tuple[str, str]] = {
    "an entity": ("GET", f"/v1/entities/{node(404)}"),
    "a list": ("GET", "/v1/entities"),
    "counts": ("GET", "/v1/state-counts"),
    "an overdue scan": ("GET", "/v1/overdue/ack"),
    "a bad parameter": ("GET", "/v1/entities?limit=0"),
    "an unknown path": ("GET", "/v1/nodes"),
    "a method that is not allowed": ("DELETE", "/v1/events"),
    "a body that is missing": ("POST", "/v1/events"),
    "liveness": ("GET", "/livez"),
    "metrics": ("GET", "/metrics"),
    "the document": ("GET", "/openapi.json"),
}


@pytest.mark.parametrize("case", CALLS)
async def test_the_clients_id_is_given_back(shared: httpx.AsyncClient, case: str) -> None:
    """Every answer, errors included, carries the correlation id that the client sent."""
    method, path = CALLS[case]
    answer = await shared.request(method, path, headers={HEADER: GIVEN})
    assert answer.headers.get_list(HEADER) == [GIVEN]


@pytest.mark.parametrize("case", CALLS)
async def test_an_id_is_made_where_none_is_sent(shared: httpx.AsyncClient, case: str) -> None:
    """If the client sends no correlation id, every answer carries a new one."""
    method, path = CALLS[case]
    made = {(await shared.request(method, path)).headers[HEADER] for _ in range(2)}
    assert len({UUID(id_) for id_ in made}) == 2


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("id_", ["17", f"{GIVEN}0", "Root=1-67891233-abcdef012345678912345678"])
async def test_an_id_of_any_form_is_given_back(shared: httpx.AsyncClient, case: str, id_: str) -> None:
    """A correlation id that is not a UUID, as gateways make them, comes back unchanged, and refuses nothing."""
    method, path = CALLS[case]
    answer = await shared.request(method, path, headers={HEADER: id_})
    assert answer.headers.get_list(HEADER) == [id_]
    assert answer.status_code == (await shared.request(method, path)).status_code


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("id_", ["", "ä", "x" * 129])
async def test_an_id_that_is_not_printable_is_replaced(shared: httpx.AsyncClient, case: str, id_: str) -> None:
    """A correlation id that is empty, too long or not ASCII is replaced by a new UUID."""
    method, path = CALLS[case]
    answer = await shared.request(method, path, headers=[(HEADER.encode(), id_.encode())])
    assert str(UUID(answer.headers[HEADER])) == answer.headers[HEADER]


async def stored(client: httpx.AsyncClient, number: int) -> str | None:
    """The correlation id in a row."""
    row: Json = (await client.get(f"/v1/entities/{node(number)}")).json()
    return None if row["correlation_id"] is None else str(row["correlation_id"])


def body_of(events: list[Json], form: str) -> tuple[str, str]:
    """Events as a request body, with its content type."""
    if form == "object":
        return json.dumps(events[0]), "application/json"
    if form == "array":
        return json.dumps(events), "application/json"
    return "\n".join(map(json.dumps, events)), NDJSON


FORMS = pytest.mark.parametrize("form", ["object", "array", "lines"])


@FORMS
async def test_the_clients_id_is_stored_when_the_event_has_none(client: httpx.AsyncClient, form: str) -> None:
    """Events without a correlation id are stored with the request's id, which several events may share."""
    events = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(2)]
    body, media = body_of(events, form)
    await client.post("/v1/events", content=body, headers={"Content-Type": media, HEADER: GIVEN.upper()})
    assert [await stored(client, number) for number in range(1 if form == "object" else 2)] == (
        [GIVEN] if form == "object" else [GIVEN, GIVEN]
    )


@FORMS
async def test_an_events_own_id_comes_first(client: httpx.AsyncClient, form: str) -> None:
    """An event that has a correlation id keeps it."""
    body, media = body_of([event_json("registration.initiated", 1, entity_id=node(0), correlation_id=OWN)], form)
    await client.post("/v1/events", content=body, headers={"Content-Type": media, HEADER: GIVEN})
    assert await stored(client, 0) == OWN


@FORMS
async def test_a_made_id_is_never_stored(client: httpx.AsyncClient, form: str) -> None:
    """If neither the event nor the request has a correlation id, the row has none."""
    body, media = body_of([event_json("registration.initiated", 1, entity_id=node(0))], form)
    await client.post("/v1/events", content=body, headers={"Content-Type": media})
    assert await stored(client, 0) is None


async def test_the_id_is_logged(shared: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """The log line of a request has its method, path and status, and carries the request's correlation id."""
    seen: list[tuple[str | None, object]] = []
    access = logging.getLogger("app.access")

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((correlation_id.get(), record.__dict__["status"]))

    listener = Listener()
    access.addHandler(listener)
    with caplog.at_level("INFO", "app.access"):
        await shared.get(f"/v1/entities/{node(404)}", headers={HEADER: GIVEN})
    access.removeHandler(listener)
    assert seen == [(GIVEN, 404)]
    assert f"GET /v1/entities/{node(404)} 404" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("path", "media"),
    [("/v1/events", "text/csv"), ("/v1/events?dry=1", "application/json"), ("/v1/nodes", "application/json")],
)
async def test_a_refused_body_is_read_to_its_end(shared: httpx.AsyncClient, path: str, media: str) -> None:
    """A request refused before its body is read is answered after the body has been drained."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield b" " * 65_536

    answer = await shared.post(path, content=body(), headers={"Content-Type": media})
    assert answer.status_code in {404, 415, 422}
    assert (read, "connection" in answer.headers) == (100, False)


async def test_a_refused_body_is_read_up_to_a_bound(shared: httpx.AsyncClient) -> None:
    """An endless refused body is drained up to a bound; then the answer closes the connection."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield bytes(1024 * 1024)

    answer = await shared.post("/v1/events", content=body(), headers={"Content-Type": "text/csv"})
    assert (answer.status_code, answer.headers["connection"]) == (415, "close")
    assert read <= 100


async def test_a_client_that_waits_for_leave_is_refused_at_once(shared: httpx.AsyncClient) -> None:
    """A request that is refused anyway gets no `100 Continue` in reply to its `Expect`."""
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b" "

    headers = {"Content-Type": "text/csv", "Expect": "100-continue", "Content-Length": "99999999"}
    answer = await shared.post("/v1/events", content=body(), headers=headers)
    assert (answer.status_code, answer.headers["connection"]) == (415, "close")
    assert read == 0


async def test_a_path_forges_no_line_of_the_log(shared: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    """Line breaks and control characters in a path are logged escaped, as the client sent them."""
    with caplog.at_level("INFO", "app.access"):
        await shared.get("/v1/x%0aINFO%20forged%1b%5b31m")
    assert caplog.messages[-1].startswith("GET /v1/x%0AINFO%20forged%1B%5B31m 404 ")


async def test_two_ids_are_made_for_two_requests(shared: httpx.AsyncClient) -> None:
    """A client's correlation id is not reused for the next request."""
    mine = str(uuid4())
    await shared.get("/livez", headers={HEADER: mine})
    assert (await shared.get("/livez")).headers[HEADER] != mine
