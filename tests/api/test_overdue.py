"""Overdue scans: registrations whose deadline has passed."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncpg
import httpx
import pytest

from tests.api.test_entities import COLUMNS
from tests.making import Json, at, event_json, node

PAGE = ["as_of", "items", "next_cursor", "next_deadline"]


class Scan(NamedTuple):
    """The differences between the two scans."""

    path: str
    deadline: str
    marker: str
    due: tuple[str, ...]
    other: str


ACK = Scan("/v1/overdue/ack", "ack_deadline", "ack_timeout_emitted_at", ("accepted", "awaiting_ack"), "active")
LIVENESS = Scan("/v1/overdue/liveness", "liveness_deadline", "liveness_timeout_emitted_at", ("active",), "accepted")
SCANS = pytest.mark.parametrize("scan", [ACK, LIVENESS], ids=["ack", "liveness"])


def row(number: int, state: str, **data: object) -> Json:
    """An event that makes one row."""
    fields = {"current_state": state, "node_type": "compute", "registered_at": at(0), **data}
    return event_json("registration.recorded", 1, entity_id=node(number), data=fields)


async def ids(client: httpx.AsyncClient, scan: Scan, query: str) -> list[str]:
    """The entities of a page, in order."""
    answer = await client.get(f"{scan.path}?{query}")
    assert answer.status_code == 200, answer.text
    return [item["entity_id"] for item in answer.json()["items"]]


def nodes(*numbers: int) -> list[str]:
    """Entity ids."""
    return [str(node(number)) for number in numbers]


@SCANS
async def test_a_scan_finds_what_is_overdue(client: httpx.AsyncClient, scan: Scan) -> None:
    """A scan finds deadlines before `as_of` that the state awaits and no timeout event has met, oldest first."""
    other_deadline = (LIVENESS if scan is ACK else ACK).deadline
    events = [
        row(1, scan.due[0], **{scan.deadline: at(20)}),
        row(2, scan.due[-1], **{scan.deadline: at(10)}),
        row(3, scan.due[0], **{scan.deadline: at(29.999999)}),
        row(4, scan.due[0], **{scan.deadline: at(30)}),
        row(5, scan.due[0], **{scan.deadline: at(40)}),
        row(6, scan.due[0], **{scan.deadline: at(5), scan.marker: at(6)}),
        row(7, scan.other, **{scan.deadline: at(5)}),
        row(8, "rejected", **{scan.deadline: at(5)}),
        row(9, scan.due[0], **{other_deadline: at(5)}),
        {**row(10, scan.due[0], **{scan.deadline: at(5)}), "domain": "elsewhere"},
    ]
    await client.post("/v1/events", json=events)
    assert await ids(client, scan, f"as_of={at(30)}") == nodes(2, 1, 3)
    assert await ids(client, scan, f"as_of={at(30)}&domain=elsewhere") == nodes(10)


@SCANS
async def test_a_page_has_its_form(client: httpx.AsyncClient, scan: Scan) -> None:
    """An item has the registration and its overdue seconds; `next_deadline` is the earliest deadline still ahead."""
    events = [
        row(1, scan.due[0], **{scan.deadline: at(10)}),
        row(2, scan.due[0], **{scan.deadline: at(90)}),
        row(3, scan.due[0], **{scan.deadline: at(60.5)}),
        row(4, scan.due[0], **{scan.deadline: at(50), scan.marker: at(51)}),
    ]
    await client.post("/v1/events", json=events)
    answer = await client.get(f"{scan.path}?as_of={at(12.25)}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert list(answer.json()) == PAGE
    [item] = answer.json().pop("items")
    assert list(item) == [*COLUMNS, "overdue_seconds"]
    assert item.pop("overdue_seconds") == 2.25
    assert item == (await client.get(f"/v1/entities/{node(1)}")).json()
    assert answer.json()["as_of"] == "2026-01-01T00:00:12.250000Z"
    assert answer.json()["next_cursor"] is None
    assert answer.json()["next_deadline"] == "2026-01-01T00:01:00.500000Z"


@SCANS
async def test_a_deadline_of_this_moment_is_still_to_come(client: httpx.AsyncClient, scan: Scan) -> None:
    """At its deadline a node is not yet overdue, and this deadline is `next_deadline`."""
    await client.post("/v1/events", json=row(1, scan.due[0], **{scan.deadline: at(10)}))
    page = (await client.get(f"{scan.path}?as_of={at(10)}")).json()
    assert (page["items"], page["next_deadline"]) == ([], at(10))


@SCANS
async def test_nothing_overdue_is_an_empty_page(shared: httpx.AsyncClient, scan: Scan) -> None:
    """Without rows a page has no items, no cursor and no next deadline."""
    answer = await shared.get(f"{scan.path}?as_of={at(0)}")
    assert answer.json() == {"as_of": at(0), "items": [], "next_cursor": None, "next_deadline": None}
    assert "link" not in answer.headers


@SCANS
async def test_the_clock_is_the_databases(client: httpx.AsyncClient, database_url: str, scan: Scan) -> None:
    """Without `as_of` the scan uses the database's clock."""
    connection = await asyncpg.connect(database_url)
    before = await connection.fetchval("SELECT clock_timestamp()")
    as_of = (await client.get(scan.path)).json()["as_of"]
    after = await connection.fetchval("SELECT clock_timestamp()")
    await connection.close()
    assert as_of.endswith("Z")
    assert before <= datetime.fromisoformat(as_of) <= after


@SCANS
async def test_the_moment_is_frozen_in_the_cursor(client: httpx.AsyncClient, scan: Scan) -> None:
    """Every page of a scan has the `as_of` of the first page, even if that came from the clock."""
    future = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    events = [row(number, scan.due[0], **{scan.deadline: at(number)}) for number in range(4)]
    await client.post("/v1/events", json=[*events, row(9, scan.due[0], **{scan.deadline: future})])
    first = (await client.get(f"{scan.path}?limit=3")).json()
    second = (await client.get(f"{scan.path}?limit=3&cursor={first['next_cursor']}")).json()
    assert second["as_of"] == first["as_of"]
    assert second["next_deadline"] == first["next_deadline"]
    assert [item["entity_id"] for item in first["items"] + second["items"]] == nodes(0, 1, 2, 3)


@SCANS
async def test_as_of_moves_the_clock_and_not_the_data(client: httpx.AsyncClient, scan: Scan) -> None:
    """`as_of` does not rewind the data: a timeout emitted after it counts as emitted."""
    type_ = "registration.ack_timed_out" if scan is ACK else "registration.liveness_expired"
    await client.post("/v1/events", json=row(1, scan.due[0], **{scan.deadline: at(10)}))
    assert await ids(client, scan, f"as_of={at(20)}") == nodes(1)
    await client.post("/v1/events", json=event_json(type_, 50, entity_id=node(1)))
    assert await ids(client, scan, f"as_of={at(20)}") == []


@SCANS
@pytest.mark.parametrize(
    "as_of", ["2026-01-01T01:00:20%2B01:00", "2025-12-31T19:00:20.000000-05:00", "2026-01-01t00:00:20z"]
)
async def test_as_of_may_be_in_any_zone(shared: httpx.AsyncClient, scan: Scan, as_of: str) -> None:
    """`as_of` may be in any time zone, and is returned in UTC."""
    assert (await shared.get(f"{scan.path}?as_of={as_of}")).json()["as_of"] == at(20)


REFUSED = {
    "no zone": "as_of=2026-01-01T00:00:00",
    "a date": "as_of=2026-01-01",
    "a number": "as_of=1767225600",
    "no time": "as_of=yesterday",
    "empty": "as_of=",
    "the year 9999": "as_of=9999-01-01T00:00:00Z",
    "the year 1899": "as_of=1899-12-31T23:59:59Z",
    "an unknown parameter": "state=active",
    "an empty domain": "domain=",
    "NUL": "domain=%00",
}


@SCANS
@pytest.mark.parametrize("case", REFUSED)
async def test_a_bad_parameter_is_422(shared: httpx.AsyncClient, scan: Scan, case: str) -> None:
    """A wrong or unknown parameter is a 422 that points at it."""
    answer = await shared.get(f"{scan.path}?{REFUSED[case]}")
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [f"#/query/{REFUSED[case].partition('=')[0]}"]
