"""Workflows over HTTP: keys, preconditions, refusals and lists."""

import asyncio
import json
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from app.api.pages import write_cursor
from app.domain.workflows import MAX_STATE
from app.settings import Settings
from app.workflows import MAX_PROVENANCE
from tests.api.conftest import service_on
from tests.conftest import application
from tests.making import START, Json

PROVENANCE = {"effect_id": "effect-1", "timestamp": "2026-01-01T00:00:00Z"}
CREATE = {"If-None-Match": "*"}
TYPED = {"Content-Type": "application/json"}


def body(number: int = 1, action: str | None = None, **fields: object) -> Json:
    """The body of a commit."""
    provenance = PROVENANCE | ({} if action is None else {"action_id": action})
    return {"state": {"n": number}, "provenance": provenance, **fields}


async def put(client: httpx.AsyncClient, key: str, sent: Json, **headers: str) -> httpx.Response:
    """Send a commit; the conditions `If-Match` and `If-None-Match` are written with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.put(f"/v1/workflows/{key}", json=sent, headers=named)


async def create(client: httpx.AsyncClient, key: str, versions: int = 1) -> Json:
    """Create a workflow with this many versions; returns its row."""
    answer = await put(client, key, body(1), If_None_Match="*")
    for version in range(1, versions):
        answer = await put(client, key, body(version + 1), If_Match=f'"{version}"')
    assert answer.status_code == (201 if versions == 1 else 200), answer.text
    row: Json = answer.json()
    return row


# --- One workflow --------------------------------------------------------------------------------------------------


async def test_a_workflow_is_created_and_changed(client: httpx.AsyncClient) -> None:
    """Creating answers 201, changing 200, both with the row and its ETag, which are also those of a read."""
    created = await put(client, "a", body(1), If_None_Match="*")
    row = {"workflow_key": "a", "version": 1, "state": {"n": 1}, "schema_version": 1, "provenance": PROVENANCE}
    assert (created.status_code, created.headers["etag"]) == (201, '"1"')
    assert created.json() == row | {"updated_at": created.json()["updated_at"]}
    assert created.json()["updated_at"].endswith("Z")
    changed = await put(client, "a", body(2, schema_version=7), If_Match='"1"')
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    read = await client.get("/v1/workflows/a")
    assert (read.status_code, read.headers["etag"], read.text) == (200, '"2"', changed.text)
    assert read.json()["schema_version"] == 7


@pytest.mark.parametrize("tags", ['x"2"y', 'w/"2"', '*, "2"', '"1"'])
async def test_what_names_no_version_of_a_row_reads_it(client: httpx.AsyncClient, tags: str) -> None:
    """A read whose `If-None-Match` has other tags, or is not a list of tags, returns the row."""
    await create(client, "a", versions=2)
    assert (await client.get("/v1/workflows/a", headers={"If-None-Match": tags})).status_code == 200


@pytest.mark.parametrize("tags", ['"2"', 'W/"2"', '"1", "2"', '"x",W/"2"', "*"])
async def test_an_unchanged_row_is_304(client: httpx.AsyncClient, tags: str) -> None:
    """A read that names the current version, even weakly or in a list, gets a 304 without a body."""
    await create(client, "a", 2)
    answer = await client.get("/v1/workflows/a", headers={"If-None-Match": tags})
    assert (answer.status_code, answer.headers["etag"], answer.content) == (304, '"2"', b"")
    assert (await client.get("/v1/workflows/a", headers={"If-None-Match": '"1"'})).status_code == 200


async def test_a_workflow_that_is_not_there(client: httpx.AsyncClient) -> None:
    """A read of an unknown workflow is a 404."""
    answer = await client.get("/v1/workflows/a")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


KEYS = {
    "plain": ("order-17", "order-17"),
    "slashes": ("orders%2F17%2F", "orders/17/"),
    "slashes as they are": ("orders/17/", "orders/17/"),
    "a slash at the start": ("%2F%2Fa", "//a"),
    "spaces": ("order%2017%20", "order 17 "),
    "a plus": ("a+b%2B", "a+b+"),
    "letters": ("%C3%A4%E2%82%AC%F0%9F%98%80", "ä€😀"),
    "what URLs are made of": ("a%3Fb%23c%25%26d%3D%3B", "a?b#c%&d=;"),
    "percents that are no escapes": ("a%2525", "a%25"),
    "line breaks": ("a%0Ab%0A", "a\nb\n"),
    "dots": ("a%2E%2Eb", "a..b"),
    "the replacement character": ("%EF%BF%BD", "\ufffd"),
    "255 characters": ("%C3%A4" * 255, "ä" * 255),
    "quotes": ("%22%27", "\"'"),
}


@pytest.mark.parametrize("case", KEYS)
async def test_keys_are_path_encoded(client: httpx.AsyncClient, case: str) -> None:
    """Any key of 1 to 255 characters works, encoded in the path, and is never confused with another."""
    path, key = KEYS[case]
    created = await put(client, path, body(1), If_None_Match="*")
    assert created.status_code == 201, created.text
    assert created.json()["workflow_key"] == key
    assert (await client.get(f"/v1/workflows/{path}")).json() == created.json()
    conflict = await put(client, path, body(1), If_None_Match="*")
    assert conflict.json()["current"] == created.json()
    [item] = (await client.get("/v1/workflows")).json()["items"]
    assert item == created.json()


@pytest.mark.parametrize("path", ["", "x" * 256, "%00", "a%00b", "%FF", "a%C3", "%ED%A0%80"])
@pytest.mark.parametrize("query", ["", "?x=1"])
async def test_what_is_no_key(shared: httpx.AsyncClient, path: str, query: str) -> None:
    """A key that is empty, too long, not UTF-8 or contains NUL is a 422 that says so, for every method."""
    for answer in (
        await shared.get(f"/v1/workflows/{path}{query}"),
        await put(shared, path + query, body(1), If_None_Match="*"),
    ):
        assert answer.status_code == 422, answer.text
        assert "#/path/workflow_key" in [error["pointer"] for error in answer.json()["errors"]] or query


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH"])
async def test_other_methods(shared: httpx.AsyncClient, method: str) -> None:
    """A method that workflows do not have is a 405 that lists the methods they have."""
    answer = await shared.request(method, "/v1/workflows/a")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS, PUT")


async def test_unknown_parameters(shared: httpx.AsyncClient) -> None:
    """Workflows have no domain: the parameter `domain` is refused like any unknown one."""
    for answer in (
        await shared.get("/v1/workflows/a?domain=registration"),
        await put(shared, "a?x=1", body(1), If_None_Match="*"),
        await shared.get("/v1/workflows?domain=registration"),
    ):
        assert answer.status_code == 422, answer.text


# --- Preconditions -------------------------------------------------------------------------------------------------


async def test_a_commit_needs_a_precondition(client: httpx.AsyncClient) -> None:
    """A commit without either header is a 428, and writes nothing."""
    answer = await put(client, "a", body(1))
    assert (answer.status_code, answer.headers["content-type"]) == (428, "application/problem+json")
    assert (await client.get("/v1/workflows/a")).status_code == 404


async def test_a_conflict_says_how_to_go_on(client: httpx.AsyncClient) -> None:
    """A 412 has the expected version, the current version and the row, from which the client can commit again."""
    row = await create(client, "a", 3)
    answer = await put(client, "a", body(9), If_Match='"1"')
    assert (answer.status_code, answer.headers["etag"]) == (412, '"3"')
    problem = answer.json()
    assert problem["type"] == "urn:pqs:problem:state-conflict"
    assert (problem["expected_version"], problem["actual_version"], problem["current"]) == (1, 3, row)
    again = await put(client, "a", body(9), If_Match=answer.headers["etag"])
    assert again.json()["version"] == 4


# The headers of a commit; whether it gets through on no row, and on one at version 3; and the expected version that a
# 412 names.
CONDITIONS: list[tuple[dict[str, str], bool, bool, int | None]] = [
    ({"If-None-Match": "*"}, True, False, None),
    ({"If-None-Match": " * "}, True, False, None),
    ({"If-None-Match": '"3"'}, True, False, None),
    ({"If-None-Match": 'W/"3"'}, True, False, None),
    ({"If-None-Match": '"1", "3"'}, True, False, None),
    ({"If-None-Match": '"1", "2"'}, True, True, None),
    ({"If-Match": '"3"'}, False, True, 3),
    ({"If-Match": '"2"'}, False, False, 2),
    ({"If-Match": '"4"'}, False, False, 4),
    ({"If-Match": "*"}, False, True, None),
    ({"If-Match": 'W/"3"'}, False, False, None),
    ({"If-Match": '"1", "3"'}, False, True, None),
    ({"If-Match": ',"1" ,, "3",'}, False, True, None),
    ({"If-Match": '"1","2"'}, False, False, None),
    ({"If-Match": '"1", W/"3"'}, False, False, None),
    ({"If-Match": '"x"'}, False, False, None),
    ({"If-Match": '""'}, False, False, None),
    ({"If-Match": '"03"'}, False, False, None),
    ({"If-Match": '"0"'}, False, False, None),
    ({"If-Match": '"-1"'}, False, False, None),
    ({"If-Match": f'"{2**63 - 1}"'}, False, False, None),
    ({"If-Match": f'"{"9" * 40}"'}, False, False, None),
    ({"If-Match": '"a,b", "3"'}, False, True, None),
    ({"If-Match": '"3"', "If-None-Match": "*"}, False, False, None),
    ({"If-Match": '"3"', "If-None-Match": '"3"'}, False, False, None),
    ({"If-Match": '"3"', "If-None-Match": '"2"'}, False, True, None),
    ({"If-Match": '"2"', "If-None-Match": '"3"'}, False, False, None),
    ({"If-Match": "*", "If-None-Match": '"2"'}, False, True, None),
    ({"If-Match": "*", "If-None-Match": "*"}, False, False, None),
]


@pytest.mark.parametrize(("headers", "on_none", "on_third", "expected"), CONDITIONS, ids=str)
async def test_preconditions(
    client: httpx.AsyncClient, headers: dict[str, str], on_none: bool, on_third: bool, expected: int | None
) -> None:
    """`If-Match` compares strongly and is checked first, `If-None-Match` weakly; a list names tags, `*` any row."""
    third = await create(client, "third", 3)
    for key, passes, row in (("none", on_none, None), ("third", on_third, third)):
        answer = await client.put(f"/v1/workflows/{key}", json=body(7), headers=headers)
        if passes:
            assert (answer.status_code, answer.json()["version"]) == ((201, 1) if row is None else (200, 4))
        else:
            problem = answer.json()
            assert (answer.status_code, problem["expected_version"], problem["current"]) == (412, expected, row)
            assert problem["actual_version"] == (row and row["version"])


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("value", ["", "3", '"3', '3"', '"3" "4"', '*, "3"', "W/3", 'w/"3"', '"3";q=1', ",", '"a b"'])
async def test_what_is_no_list_of_tags(shared: httpx.AsyncClient, name: str, value: str) -> None:
    """A header that is not a list of ETags is a 422 that points at it, and never counts as a match."""
    answer = await shared.put("/v1/workflows/a", json=body(1), headers={name: value})
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"#/header/{name}"]


async def test_two_headers_of_one_name_are_one_list(client: httpx.AsyncClient) -> None:
    """A list of tags may be spread over several header lines."""
    await create(client, "a")
    headers = [("If-Match", '"7"'), ("If-Match", '"1"')]
    assert (await client.put("/v1/workflows/a", json=body(2), headers=headers)).status_code == 200


async def test_any_version_at_once(client: httpx.AsyncClient) -> None:
    """Concurrent commits on any version each make one version; a commit that cannot succeed is refused whole."""
    await create(client, "a")
    answers = await asyncio.gather(*(put(client, "a", body(number), If_Match="*") for number in range(10)))
    done = [answer.json()["version"] for answer in answers if answer.status_code == 200]
    assert sorted(done) == list(range(2, len(done) + 2))
    assert {answer.status_code for answer in answers} <= {200, 503}


# --- Actions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on", "status"), [(0, 201), (1, 200)])
async def test_a_retry_is_a_replay(client: httpx.AsyncClient, on: int, status: int) -> None:
    """An action sent again, even after later commits, gets its first answer, marked as a replay."""
    first = {"If-Match": f'"{on}"'} if on else CREATE
    if on:
        await create(client, "a")
    done = await client.put("/v1/workflows/a", json=body(5, "x"), headers=first)
    assert (done.status_code, done.headers.get("idempotency-replayed")) == (status, None)
    assert (await put(client, "a", body(6), If_Match=f'"{on + 1}"')).status_code == 200
    for headers in (first, CREATE, {"If-Match": "*"}, {"If-Match": '"9", W/"1"'}, {"If-Match": f'"{on + 2}"'}):
        again = await client.put("/v1/workflows/a", json=body(5, "x"), headers=headers)
        assert (again.status_code, again.text) == (status, done.text), headers
        assert (again.headers["idempotency-replayed"], again.headers["etag"]) == ("true", f'"{on + 1}"')


@pytest.mark.parametrize("headers", [CREATE, {"If-Match": '"1"'}, {"If-Match": "*"}], ids=str)
async def test_an_action_with_another_state_is_409(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """The same action with another state is a 409 that names the version that the action made."""
    await put(client, "a", body(1, "x"), If_None_Match="*")
    answer = await client.put("/v1/workflows/a", json=body(2, "x"), headers=headers)
    assert answer.status_code == 409
    problem = answer.json()
    assert (problem["type"], problem["action_id"], problem["version"]) == (
        "urn:pqs:problem:action-conflict",
        "x",
        1,
    )


# --- What is refused -----------------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[str, Json]] = {
    "no state": ("#/state", {"state": ...}),
    "no provenance": ("#/provenance", {"provenance": ...}),
    "an empty state": ("#/state", {"state": {}}),
    "a state that is an array": ("#/state", {"state": [1]}),
    "a state that is null": ("#/state", {"state": None}),
    "an unknown field": ("#/version", {"version": 1}),
    "schema version 0": ("#/schema_version", {"schema_version": 0}),
    "a large schema version": ("#/schema_version", {"schema_version": 2**31}),
    "a schema version that is text": ("#/schema_version", {"schema_version": "1"}),
    "a provenance that is text": ("#/provenance", {"provenance": "x"}),
    "an empty provenance": ("#/provenance/effect_id", {"provenance": {}}),
    "no effect": ("#/provenance/effect_id", {"provenance": {"timestamp": "2026-01-01T00:00:00Z"}}),
    "no time": ("#/provenance/timestamp", {"provenance": {"effect_id": "x"}}),
    "a time without a zone": (
        "#/provenance/timestamp",
        {"provenance": {"effect_id": "x", "timestamp": "2026-01-01"}},
    ),
    "an action that is a number": ("#/provenance/action_id", {"provenance": PROVENANCE | {"action_id": 1}}),
    "a large state": ("#/state", {"state": {"x": "x" * MAX_STATE}}),
    "a state that is large when its numbers are spelt out": ("#/state", {"state": {"x": [1e308] * 3500}}),
    "a large provenance": ("#/provenance", {"provenance": PROVENANCE | {"note": "x" * MAX_PROVENANCE}}),
    "NUL in the state": ("#/state/a/0", {"state": {"a": ["\0"]}}),
    "NUL in the provenance": ("#/provenance/note", {"provenance": PROVENANCE | {"note": "\0"}}),
    "a deep state": ("#/state", {"state": {"a": json.loads("[" * 64 + "]" * 64)}}),
}


@pytest.mark.parametrize("case", MISTAKES)
async def test_a_mistake_is_pointed_at(shared: httpx.AsyncClient, case: str) -> None:
    """A readable but invalid commit is a 422 that points at the field, and writes nothing."""
    pointer, changes = MISTAKES[case]
    sent = {name: value for name, value in (body(1) | changes).items() if value is not ...}
    answer = await put(shared, "refused", sent, If_None_Match="*")
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    assert (await shared.get("/v1/workflows/refused")).status_code == 404


UNREADABLE: dict[str, tuple[int, bytes]] = {
    "nothing": (400, b""),
    "no JSON": (400, b"{"),
    "no UTF-8": (400, b'{"state": {"a": "\xff"}}'),
    "a lone surrogate": (400, b'{"state": {"a": "\\ud83d"}, "provenance": {}}'),
    "no number": (400, b'{"state": {"a": NaN}}'),
    "a number too large": (422, b'{"state": {"a": 1e400}, "provenance": {}}'),
    "a number with too many digits": (422, b'{"state": {"a": ' + b"9" * 5000 + b'}, "provenance": {}}'),
    "deeper than can be read": (422, b'{"state": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "an array": (422, b"[]"),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_a_body_that_can_not_be_read(shared: httpx.AsyncClient, case: str) -> None:
    """A body that is not JSON is a 400, and one that PostgreSQL cannot store a 422; none is a 500."""
    status, sent = UNREADABLE[case]
    answer = await shared.put("/v1/workflows/refused", content=sent, headers=CREATE | TYPED)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text


async def test_a_body_that_is_too_large_or_no_json(shared: httpx.AsyncClient) -> None:
    """The body of a commit has the usual size limit, and its content type must be JSON."""
    large = await shared.put("/v1/workflows/a", content=b" " * (8 * 1024 * 1024 + 1), headers=CREATE | TYPED)
    assert large.status_code == 413
    text = await shared.put("/v1/workflows/a", content=b"a,b", headers=CREATE | {"Content-Type": "text/csv"})
    assert text.status_code == 415


async def test_numbers_are_kept_as_decimals(client: httpx.AsyncClient) -> None:
    """A number keeps its value, not its spelling; a retry with the same body counts as the same state."""
    content = b'{"state":{"a":1e22,"b":1.10,"c":0.1,"d":12345678901234567890},"provenance":' + (
        json.dumps(PROVENANCE | {"action_id": "x"}).encode() + b"}"
    )
    done = await client.put("/v1/workflows/a", content=content, headers=CREATE | TYPED)
    assert '"state":{"a":10000000000000000000000,"b":1.1,"c":0.1,"d":12345678901234567890}' in done.text
    again = await client.put("/v1/workflows/a", content=content, headers=CREATE | TYPED)
    assert (again.text, again.headers["idempotency-replayed"]) == (done.text, "true")


async def test_a_database_that_is_down(unreachable_url: str) -> None:
    """Without a database every call is a 503 with `Retry-After`."""
    async with service_on(unreachable_url) as client:
        for answer in (
            await client.get("/v1/workflows/a"),
            await client.get("/v1/workflows"),
            await put(client, "a", body(1), If_None_Match="*"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("batching", [True, False])
async def test_outcomes_are_counted(settings: Settings, batching: bool) -> None:
    """The metrics count commits by outcome, and requests by route, not by key."""
    async with application(settings.model_copy(update={"batching": batching})) as client:
        await put(client, "a/b", body(1, "x"), If_None_Match="*")
        await put(client, "a/b", body(1, "x"), If_None_Match="*")
        await put(client, "a/b", body(2, "x"), If_None_Match="*")
        await put(client, "a/b", body(2), If_None_Match="*")
        text = (await client.get("/metrics")).text
    for outcome, count in (("committed", 1), ("replayed", 1), ("conflict", 2)):
        assert f'pqs_workflow_commits_total{{outcome="{outcome}"}} {count}.0' in text
    series = 'http_request_method="PUT",http_response_status_code="201",http_route="/v1/workflows/{workflow_key}"'
    assert f"http_server_request_duration_seconds_count{{{series}}} 2.0" in text


# --- Lists ---------------------------------------------------------------------------------------------------------


async def pages(client: httpx.AsyncClient, path: str) -> list[Json]:
    """Every item, page by page, following the links."""
    items: list[Json] = []
    while True:
        answer = await client.get(path)
        page: dict[str, Any] = answer.json()
        items += page["items"]
        assert ("link" in answer.headers) == (page["next_cursor"] is not None)
        if page["next_cursor"] is None:
            return items
        path = answer.headers["link"].removesuffix('>; rel="next"').removeprefix("<")
        path = urljoin("/v1/workflows", path)


async def test_the_list_pages_in_the_order_of_changes(client: httpx.AsyncClient) -> None:
    """Pages have every row once, the oldest change first; a row that changes moves to the end."""
    rows = [await create(client, f"key {number % 7} {number}") for number in range(11)]
    assert await pages(client, "/v1/workflows?limit=3") == rows
    changed = (await put(client, rows[4]["workflow_key"], body(2), If_Match='"1"')).json()
    expected = [*rows[:4], *rows[5:], changed]
    for limit in (1, 4, 11, 12):
        assert await pages(client, f"/v1/workflows?limit={limit}") == expected
    assert (await client.get("/v1/workflows")).json() == {"items": expected, "next_cursor": None}


async def test_a_poller_asks_from_a_time_on(client: httpx.AsyncClient) -> None:
    """`updated_since` includes rows of that very moment, and cursors are bound to it."""
    rows = [await create(client, f"key {number}") for number in range(6)]
    path = f"/v1/workflows?updated_since={rows[2]['updated_at']}"
    assert await pages(client, f"{path}&limit=2") == rows[2:]
    assert await pages(client, "/v1/workflows?updated_since=2999-01-01T00:00:00%2B02:00") == []
    cursor = (await client.get(f"{path}&limit=2")).json()["next_cursor"]
    assert (await client.get(f"{path}&limit=9&cursor={cursor}")).json()["items"] == rows[4:]
    for other in ("", f"updated_since={rows[1]['updated_at']}&"):
        assert (await client.get(f"/v1/workflows?{other}cursor={cursor}")).status_code == 400


@pytest.mark.parametrize("limit", ["0", "-1", "x", ""])
async def test_a_limit_below_one(shared: httpx.AsyncClient, limit: str) -> None:
    """A limit that is not a number from 1 up is a 422."""
    assert (await shared.get(f"/v1/workflows?limit={limit}")).status_code == 422


@pytest.mark.parametrize("time", ["yesterday", "2026-01-01T00:00:00", "1700000000", ""])
async def test_a_time_without_a_zone(shared: httpx.AsyncClient, time: str) -> None:
    """`updated_since` without a time zone is refused."""
    answer = await shared.get("/v1/workflows", params={"updated_since": time})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/query/updated_since"]


@pytest.mark.parametrize("place", [[START], ["x", "y"], {"a": 1}, [START.replace(tzinfo=None), "a"]])
async def test_a_strange_cursor(shared: httpx.AsyncClient, place: object) -> None:
    """A validly sealed cursor of another release is refused like a damaged one."""
    sealed = write_cursor(place, ["workflows", "1900-01-01T00:00:00Z"])
    for cursor in (sealed, "damaged"):
        assert (await shared.get(f"/v1/workflows?cursor={cursor}")).status_code == 400


async def test_a_list_has_an_order_and_a_prefix(client: httpx.AsyncClient) -> None:
    """Lists go by the newest change, or by key in the order of bytes; each page goes on where the last one ended."""
    for key in ("b/1", "a/1", "B", "a/2"):
        made = await client.put(f"/v1/workflows/{key}", json=body(), headers=CREATE)
        assert made.status_code == 201, made.text
    for query, expected in {
        "order=oldest": ["b/1", "a/1", "B", "a/2"],
        "order=newest": ["a/2", "B", "a/1", "b/1"],
        "order=key": ["B", "a/1", "a/2", "b/1"],
        "order=key&key_prefix=a/": ["a/1", "a/2"],
        "order=newest&key_prefix=a/": ["a/2", "a/1"],
        "key_prefix=a/": ["a/1", "a/2"],
        "order=key&updated_since=2999-01-01T00:00:00Z": [],
    }.items():
        found: list[str] = []
        path: str | None = f"/v1/workflows?{query}&limit=1"
        while path is not None:
            page = (await client.get(path)).json()
            found += [row["workflow_key"] for row in page["items"]]
            path = page["next_cursor"] and f"/v1/workflows?{query}&limit=1&cursor={page['next_cursor']}"
        assert found == expected, query


async def test_a_cursor_belongs_to_its_order(client: httpx.AsyncClient) -> None:
    """A cursor of one order or prefix is refused by another."""
    for key in ("a", "b"):
        await client.put(f"/v1/workflows/{key}", json=body(), headers=CREATE)
    cursor = (await client.get("/v1/workflows?order=newest&limit=1")).json()["next_cursor"]
    for query in ("", "order=key&", "order=newest&key_prefix=a&"):
        assert (await client.get(f"/v1/workflows?{query}cursor={cursor}")).status_code == 400


@pytest.mark.parametrize("query", ["order=backwards", "key_prefix=", f"key_prefix={'k' * 256}", "key_prefix=a%00"])
async def test_a_bad_order_or_prefix_is_422(shared: httpx.AsyncClient, query: str) -> None:
    """An order is one of three, and a prefix may begin a key."""
    answer = await shared.get(f"/v1/workflows?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"#/query/{query.partition('=')[0]}"
