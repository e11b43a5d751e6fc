"""Keyset pages: limits, cursors, links, and their guarantees while rows change."""

import asyncio
import itertools
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
import pytest

from app.api.pages import write_cursor
from app.store.listing import EntityFilter
from tests.making import Json, at, event_json, node

ENTITIES = "/v1/entities?domain=paged"
ACK = f"/v1/overdue/ack?domain=paged&as_of={at(1000)}"
LIVENESS = f"/v1/overdue/liveness?domain=paged&as_of={at(1000)}"
LISTS = [ENTITIES, ACK, LIVENESS]
URL_SAFE = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def recorded(number: int, sequence: int, state: str, deadline: float, domain: str = "paged") -> Json:
    """An event that puts a row into a state, with a deadline."""
    deadlines = {"accepted": "ack_deadline", "active": "liveness_deadline"}
    data: Json = {"current_state": state, "node_type": "compute", "registered_at": at(0)}
    if state in deadlines:
        data[deadlines[state]] = at(deadline)
    return event_json("registration.recorded", sequence, entity_id=node(number), domain=domain, data=data)


@pytest.fixture(scope="module")
async def paged(shared: httpx.AsyncClient) -> httpx.AsyncClient:
    """A service with 1,010 nodes in `accepted` and 1,010 in `active`; each deadline is shared by two nodes."""
    events = [recorded(number, 1, "accepted" if number % 2 else "active", number // 4) for number in range(2020)]
    await shared.post("/v1/events", json=events)
    return shared


# --- Limits --------------------------------------------------------------------------------------------------------

LIMITS = {
    "none": ("", 100),
    "1": ("&limit=1", 1),
    "7": ("&limit=7", 7),
    "zeros before it": ("&limit=" + "0" * 30 + "7", 7),
    "1,000": ("&limit=1000", 1000),
    "7.0": ("&limit=7.0", 7),
    "1e2": ("&limit=1e2", 100),
    "1,001": ("&limit=1001", 1000),
    "30 digits": ("&limit=" + "9" * 30, 1000),
    "5,000 digits": ("&limit=" + "9" * 5000, 1000),
}
BELOW = ["0", "000", "-1", "-1001", "abc", "", "1.5", "15e-1", "1_000", "%2B5", "%205", "٣", "null"]


@pytest.mark.parametrize("case", LIMITS)
@pytest.mark.parametrize("path", LISTS)
async def test_a_page_has_as_many_rows_as_its_limit(paged: httpx.AsyncClient, path: str, case: str) -> None:
    """The limit is 100 by default; a larger one than 1,000 is lowered to 1,000."""
    query, rows = LIMITS[case]
    answer = await paged.get(path + query)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["items"]) == rows
    assert answer.json()["next_cursor"] is not None


@pytest.mark.parametrize("limit", BELOW)
@pytest.mark.parametrize("path", LISTS)
async def test_a_limit_below_one_is_422(shared: httpx.AsyncClient, path: str, limit: str) -> None:
    """A limit below 1, or one that is not in digits, is a 422 that points at it."""
    answer = await shared.get(f"{path}&limit={limit}")
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == ["#/query/limit"]


# --- Cursors and links ---------------------------------------------------------------------------------------------


async def pages(
    client: httpx.AsyncClient, path: str, between: Callable[[], AsyncIterator[None]] | None = None
) -> list[Json]:
    """Every item, page by page; awaits `between` after each page."""
    items: list[Json] = []
    pause = between() if between else None
    for _ in range(2000):
        page = (await client.get(path)).json()
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        path = f"{path.partition('&cursor=')[0]}&cursor={page['next_cursor']}"
        if pause:
            await anext(pause)
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("limit", [333, 1000])
async def test_pages_hold_every_row_once(paged: httpx.AsyncClient, path: str, limit: int) -> None:
    """Paging to the end gives each row once, in one order, even where deadlines are equal."""
    items = await pages(paged, f"{path}&limit={limit}")
    keys = [(item.get("overdue_seconds", 0) * -1, item["entity_id"]) for item in items]
    assert len(items) == (2020 if path == ENTITIES else 1010)
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("path", LISTS)
async def test_the_last_page_has_no_next(paged: httpx.AsyncClient, path: str) -> None:
    """A page that ends exactly at the last row has no cursor and no link."""
    first = (await paged.get(f"{path}&limit=1000")).json()["next_cursor"]
    rest = len(await pages(paged, f"{path}&limit=1000")) - 1000
    for limit in (10, 1000):
        last = await paged.get(f"{path}&limit={limit}&cursor={first}")
        assert (last.json()["next_cursor"] is None) == (limit >= rest)
        assert ("link" in last.headers) == (limit < rest)


@pytest.mark.parametrize("path", LISTS)
async def test_a_cursor_is_opaque_and_url_safe(paged: httpx.AsyncClient, path: str) -> None:
    """A cursor needs no escaping in a URL."""
    cursor = (await paged.get(f"{path}&limit=1")).json()["next_cursor"]
    assert set(cursor) <= URL_SAFE


@pytest.mark.parametrize("path", [f"{ENTITIES}&state=active&state=accepted&node_type=compute", ACK, LIVENESS])
async def test_the_link_leads_to_the_next_page(paged: httpx.AsyncClient, path: str) -> None:
    """`Link` is this query with the cursor added, relative to this path, and leads to the next page."""
    first = await paged.get(f"{path}&limit=3")
    link = first.headers["link"]
    target = link.removesuffix('>; rel="next"').removeprefix("<")
    assert link == f'<{target}>; rel="next"'
    asked = [*parse_qsl(urlsplit(f"{path}&limit=3").query), ("cursor", first.json()["next_cursor"])]
    assert (urlsplit(target).path, parse_qsl(urlsplit(target).query)) == ("", asked)
    six = (await paged.get(f"{path}&limit=6")).json()["items"]
    assert first.json()["items"] + (await paged.get(urljoin(path, target))).json()["items"] == six


@pytest.mark.parametrize("path", LISTS)
async def test_a_cursor_goes_with_another_limit(paged: httpx.AsyncClient, path: str) -> None:
    """A cursor may be used with another limit than that of its page."""
    ten = (await paged.get(f"{path}&limit=10")).json()["items"]
    cursor = (await paged.get(f"{path}&limit=2")).json()["next_cursor"]
    assert (await paged.get(f"{path}&limit=8&cursor={cursor}")).json()["items"] == ten[2:]


# Where a cursor comes from, and where it is used.
OTHERS = {
    "another domain": (ENTITIES, "/v1/entities?domain=registration"),
    "no domain": (ENTITIES, "/v1/entities?"),
    "a state more": (ENTITIES, f"{ENTITIES}&state=active"),
    "another state": (f"{ENTITIES}&state=active", f"{ENTITIES}&state=accepted"),
    "no state": (f"{ENTITIES}&state=active", ENTITIES),
    "a node type": (ENTITIES, f"{ENTITIES}&node_type=compute"),
    "a capability": (ENTITIES, f"{ENTITIES}&capability=gpu"),
    "capabilities": (ENTITIES, f"{ENTITIES}&capabilities={{}}"),
    "an event": (ENTITIES, f"{ENTITIES}&event_id={node(1)}"),
    "a time": (ENTITIES, f"{ENTITIES}&updated_before={at(5000)}"),
    "another time": (f"{ENTITIES}&updated_before={at(4000)}", f"{ENTITIES}&updated_before={at(5000)}"),
    "the other scan": (ACK, LIVENESS),
    "the scan back": (LIVENESS, ACK),
    "a list for a scan": (ACK, ENTITIES),
    "a scan for a list": (ENTITIES, ACK),
    "another as_of": (ACK, f"/v1/overdue/ack?domain=paged&as_of={at(1001)}"),
    "a scan of another domain": (ACK, f"/v1/overdue/ack?as_of={at(1000)}"),
}


@pytest.mark.parametrize("case", OTHERS)
async def test_a_cursor_with_other_filters_is_400(paged: httpx.AsyncClient, case: str) -> None:
    """A cursor is refused with other filters than those of its page."""
    source, other = OTHERS[case]
    cursor = (await paged.get(f"{source}&limit=1")).json()["next_cursor"]
    answer = await paged.get(f"{other}&limit=1&cursor={cursor}")
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["type", "title", "status", "detail", "instance"]
    assert "cursor" in answer.json()["detail"]


SAME = {
    "states in another order": (f"{ENTITIES}&state=active&state=accepted", f"{ENTITIES}&state=accepted&state=active"),
    "a state twice": (f"{ENTITIES}&state=active", f"{ENTITIES}&state=active&state=active"),
    "capabilities in another order": (
        f'{ENTITIES}&capabilities={{"a":{{}},"b":1}}',
        f'{ENTITIES}&capabilities={{ "b": 1, "a": {{}} }}',
    ),
    "a time in another zone": (
        f"{ENTITIES}&updated_before={at(5000)}",
        f"{ENTITIES}&updated_before=2026-01-01T02:23:20%2B01:00",
    ),
    "as_of in another zone": (ACK, "/v1/overdue/ack?domain=paged&as_of=2026-01-01T01:16:40.000%2B01:00"),
    "as_of left out": (ACK, "/v1/overdue/ack?domain=paged"),
    "the same as_of": (LIVENESS, LIVENESS),
}


@pytest.mark.parametrize("case", SAME)
async def test_a_cursor_goes_with_the_same_filters_put_otherwise(client: httpx.AsyncClient, case: str) -> None:
    """A cursor is accepted with the same filters in another spelling; `as_of` may be left out."""
    source, other = SAME[case]
    events = [recorded(number, 1, "accepted" if number % 2 else "active", number) for number in range(8)]
    for event in events:
        event["data"]["capabilities"] = {"a": {}, "b": 1}
    await client.post("/v1/events", json=events)
    whole = (await client.get(f"{source}&limit=3")).json()["items"]
    cursor = (await client.get(f"{source}&limit=1")).json()["next_cursor"]
    answer = await client.get(f"{other}&limit=2&cursor={cursor}")
    assert answer.json()["items"] == whole[1:], answer.text


def flipped(cursor: str, place: int) -> str:
    """The cursor with one bit of one byte flipped."""
    raw = bytearray(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    raw[place] ^= 1
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


DAMAGES: dict[str, Callable[[str], str]] = {
    "empty": lambda _: "",
    "nonsense": lambda _: "damaged",
    "one character": lambda _: "A",
    "no ASCII": lambda _: "ä" * 20,
    "NUL": lambda _: "%00",
    "cut": lambda cursor: cursor[:-1],
    "cut by four": lambda cursor: cursor[:-4],
    "longer": lambda cursor: cursor + "A",
    "longer by four": lambda cursor: cursor + "AAAA",
    "twice": lambda cursor: cursor + cursor,
    "with padding": lambda cursor: cursor + "=",
    "with spaces": lambda cursor: f"{cursor[:5]}%20{cursor[5:]}",
    "the other alphabet": lambda cursor: f"{cursor[:5]}%2F{cursor[6:]}",
    "in the checksum": lambda cursor: flipped(cursor, 0),
    "in the filters": lambda cursor: flipped(cursor, 8),
    "in the place": lambda cursor: flipped(cursor, 20),
    "at the end": lambda cursor: flipped(cursor, -1),
}


@pytest.mark.parametrize("case", DAMAGES)
@pytest.mark.parametrize("path", LISTS)
async def test_a_damaged_cursor_is_400(paged: httpx.AsyncClient, path: str, case: str) -> None:
    """A damaged cursor is always refused, and never leads elsewhere."""
    cursor = (await paged.get(f"{path}&limit=1")).json()["next_cursor"]
    answer = await paged.get(f"{path}&cursor={DAMAGES[case](cursor)}")
    assert answer.status_code == (422 if case == "empty" else 400), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "place", [["x"], [], {"x": 1}, ["2026-01-01T00:00:00", "2026-01-01T00:00:00Z", str(node(1))]]
)
@pytest.mark.parametrize(
    ("path", "filters"),
    [
        (ENTITIES, ["entities", EntityFilter(domain="paged")]),
        (ACK, ["/v1/overdue/ack", "paged"]),
        (LIVENESS, ["/v1/overdue/liveness", "paged"]),
    ],
)
async def test_a_sealed_cursor_with_a_strange_place_is_400(
    paged: httpx.AsyncClient, path: str, filters: object, place: object
) -> None:
    """A validly sealed cursor of another release is refused like a damaged one."""
    answer = await paged.get(f"{path}&cursor={write_cursor(place, filters)}")
    assert (answer.status_code, answer.json()["detail"]) == (400, "the cursor is damaged")


# --- While rows change ---------------------------------------------------------------------------------------------

STEADY = 40  # rows that nobody touches, of each of two states
RESTLESS = range(1000, 1020)  # rows that come, go and change


@asynccontextmanager
async def writing(client: httpx.AsyncClient) -> AsyncIterator[Callable[[], AsyncIterator[None]]]:
    """Start a task that keeps writing; returns a function that waits, between two pages, for its next write."""
    wrote = asyncio.Condition()
    count = 0

    async def write() -> None:
        nonlocal count
        for sequence in itertools.count(2):
            states = itertools.cycle(["active", "accepted", "rejected", "active"][sequence % 3 :])
            events = [recorded(n, sequence, next(states), (n * sequence) % 90) for n in RESTLESS]
            events.append(recorded(2000 + sequence, 1, "active" if sequence % 2 else "accepted", sequence % 90))
            (await client.post("/v1/events", json=events)).raise_for_status()
            async with wrote:
                count += 1
                wrote.notify_all()

    async def between() -> AsyncIterator[None]:
        while True:
            async with wrote:
                seen = count
                while count == seen:
                    await wrote.wait()
            yield

    task = asyncio.create_task(write())
    try:
        async with asyncio.timeout(30):
            yield between
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("path", "states"),
    [
        ("/v1/entities?domain=paged", ["active", "accepted"]),
        ("/v1/entities?domain=paged&state=active", ["active"]),
        ("/v1/entities?domain=paged&state=active&state=accepted", ["active", "accepted"]),
        (ACK, ["accepted"]),
        (LIVENESS, ["active"]),
    ],
)
async def test_paging_under_writes_returns_each_steady_row_once(
    client: httpx.AsyncClient, path: str, states: list[str]
) -> None:
    """While other rows change, pages of 7 return each row that matches throughout exactly once."""
    steady = [recorded(number, 1, ("active", "accepted")[number % 2], number) for number in range(2 * STEADY)]
    await client.post("/v1/events", json=steady)
    async with writing(client) as between:
        items = await pages(client, f"{path}&limit=7", between)
    expected = {event["entity_id"] for event in steady if event["data"]["current_state"] in states}
    found = Counter(item["entity_id"] for item in items)
    assert {id_: found[id_] for id_ in expected} == dict.fromkeys(expected, 1)
    assert len(expected) == STEADY * len(states)


@pytest.mark.parametrize("path", ["/v1/entities?domain=paged", "/v1/entities?domain=paged&state=active"])
async def test_paging_under_writes_returns_no_row_twice(client: httpx.AsyncClient, path: str) -> None:
    """In the order of entity ids no row moves, so no row comes twice, whatever changes it has."""
    await client.post("/v1/events", json=[recorded(number, 1, "active", number) for number in range(STEADY)])
    async with writing(client) as between:
        items = await pages(client, f"{path}&limit=7", between)
    ids = [item["entity_id"] for item in items]
    assert ids == sorted(set(ids))
