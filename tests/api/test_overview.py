"""A domain and the service at a glance, and the list of domains."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from app import main
from app.api import overview
from app.api.overview import Overviews, SharedRead
from app.domain.states import RegistrationState
from app.errors import UnavailableError
from app.settings import Settings
from tests.api.conftest import service_on
from tests.making import Json, event_json, life, node

PATH, DOMAINS = "/v1/overview", "/v1/domains"
FAR = (datetime.now(UTC) + timedelta(days=30)).replace(microsecond=0)
EMPTY = {"count": 0, "is_more": False, "oldest_deadline": None, "next_deadline": None}


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the numbers at each look, where a test does not say otherwise."""
    monkeypatch.setattr(overview, "COUNTS_FOR", 0.0)


async def look(client: httpx.AsyncClient, query: str = "") -> Json:
    """An overview."""
    answer = await client.get(PATH + query)
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


async def test_an_overview_of_nothing(shared: httpx.AsyncClient) -> None:
    """A domain without entities has zeros, no deadlines, and the state of the service."""
    found = await look(shared, "?domain=nothing")
    assert list(found) == ["at", "domain", "total", "counts", "overdue", "operations"]
    assert (found["domain"], found["total"]) == ("nothing", 0)
    assert found["counts"] == dict.fromkeys(RegistrationState, 0)
    assert found["overdue"] == {"ack": EMPTY, "liveness": EMPTY}
    operations = found["operations"]
    assert operations["sweep"] == {"is_on": False, "meaning": overview.SWEEPS[False]}
    assert operations["outbox"] == {"messages": 0, "oldest_at": None, "destinations": []}
    assert operations["dead_letters"] == {"count": 0}
    assert operations["watermarks"] == {"partitions": 0, "unknown": 0, "as_of": None}
    assert operations["breakers"] == [{"name": "primary", "is_open": False}, {"name": "scans", "is_open": False}]


async def test_the_numbers_are_those_of_the_other_calls(client: httpx.AsyncClient) -> None:
    """Counts and overdue nodes are those of a domain, as the calls for each of them answer."""
    events = [event for number in range(6) for event in life(node(number))[: number + 1]]
    events.append(event_json("registration.initiated", 1, entity_id=node(0), domain="other"))
    late = event_json("registration.accepted", 2, entity_id=node(0), data={"ack_deadline": FAR.isoformat()})
    assert (await client.post("/v1/events", json=[*events, late])).status_code == 200
    found = await look(client)
    counts = (await client.get("/v1/state-counts")).json()
    assert (found["counts"], found["total"]) == (counts["counts"], counts["total"])
    for kind in ("ack", "liveness"):
        page = (await client.get(f"/v1/overdue/{kind}")).json()
        deadlines = [each[f"{kind}_deadline"] for each in page["items"]]
        assert found["overdue"][kind] == {
            "count": len(deadlines),
            "is_more": False,
            "oldest_deadline": deadlines[0],
            "next_deadline": page["next_deadline"],
        }
    assert found["overdue"]["ack"]["next_deadline"] == FAR.isoformat().replace("+00:00", "Z")
    [*_, minute] = found["operations"]["minutes"]
    assert sum(each["applied"] for each in found["operations"]["minutes"]) == len(events) + 1
    assert minute["began_at"].endswith(":00Z")


async def test_overdue_nodes_are_counted_up_to_a_limit(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the limit are not counted, and the answer says that there are more."""
    monkeypatch.setattr("app.store.overdue.COUNTED", 3)
    for number in range(1, 5):
        await client.post("/v1/events", json=life(node(number)))
        found = (await look(client))["overdue"]["liveness"]
        assert (found["count"], found["is_more"]) == (min(number, 3), number > 3)


async def test_what_waits_and_what_failed(client: httpx.AsyncClient, database_url: str) -> None:
    """Outbox, dead letters and watermarks are summed up; times stand for ages."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO outbox (destination, slot, envelope, messages, created_at) VALUES"
        " ('topic:out', 0, '{}', 2, '2026-01-01T00:00:00Z'), ('topic:out', 1, '{}', 3, '2026-01-01T00:00:05Z'),"
        " ('effect:consul', 1, '{}', 1, '2026-01-01T00:00:07Z')"
    )
    await connection.execute(
        "INSERT INTO dead_letters (source, topic, headers, error) SELECT 'relay', 'out', '[]', 'e'"
        " FROM generate_series(1, 4)"
    )
    await connection.execute(
        'INSERT INTO watermarks (topic, partition, "offset", message_at, caught_up_at, updated_at, consumer) VALUES'
        " ('nodes', 0, 17, '2026-01-01T00:00:00Z', '2026-01-01T00:01:00Z', now(), 'me'),"
        " ('nodes', 1, 18, '2026-01-01T00:02:00Z', NULL, now(), 'me'), ('nodes', 2, -1, NULL, NULL, now(), 'me')"
    )
    await connection.close()
    found = (await look(client))["operations"]
    assert found["outbox"] == {
        "messages": 6,
        "oldest_at": "2026-01-01T00:00:00Z",
        "destinations": [
            {"destination": "effect:consul", "messages": 1, "oldest_at": "2026-01-01T00:00:07Z"},
            {"destination": "topic:out", "messages": 5, "oldest_at": "2026-01-01T00:00:00Z"},
        ],
    }
    assert found["dead_letters"] == {"count": 4}
    assert found["watermarks"] == {"partitions": 3, "unknown": 1, "as_of": "2026-01-01T00:01:00Z"}


async def test_a_service_that_sweeps_says_so(database_url: str) -> None:
    """The sweep of the service is on, and the answer says what that means; each destination has its backlog."""
    async with service_on(database_url, sweep=True, bus="memory") as client:
        found = (await look(client))["operations"]
    assert found["sweep"] == {"is_on": True, "meaning": overview.SWEEPS[True]}
    assert [each["destination"] for each in found["outbox"]["destinations"]] == ["topic:registration-events"]


async def test_the_same_numbers_are_304(client: httpx.AsyncClient) -> None:
    """The ETag stays while the numbers do, whatever the time, and no answer is kept by a shared cache."""
    first = await client.get(PATH)
    tag = first.headers["etag"]
    assert tag.startswith('W/"')
    assert first.headers["cache-control"] == "private, no-cache"
    again = await client.get(PATH, headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await client.get(PATH)).json()["at"] != first.json()["at"]
    await client.post("/v1/events", json=event_json("registration.initiated", 1))
    changed = await client.get(PATH, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["total"]) == (200, 1)


async def test_many_looks_are_one_snapshot(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a second, the database is asked once, however many look at once or one after the other."""
    monkeypatch.setattr(overview, "COUNTS_FOR", 60.0)
    reads: list[str] = []

    def counted(name: str) -> None:
        method: Any = getattr(Overviews, name)

        async def read(self: Overviews, *given: str) -> Any:
            reads.append(" ".join([name, *given]))
            return await method(self, *given)

        monkeypatch.setattr(Overviews, name, read)

    counted("_read_domain")
    counted("_read_operations")
    app = main.create_app(settings)
    async with app.router.lifespan_context(app):
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
        found = await asyncio.gather(*(client.get(PATH) for _ in range(50)))
        found.append(await client.get(PATH))
        assert len({answer.content for answer in found}) == 1
        assert sorted(reads) == ["_read_domain registration", "_read_operations"]
        await client.get(f"{PATH}?domain=other")
        assert reads[2:] == ["_read_domain other"]


async def test_a_snapshot_is_read_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value counts for a while, and so does an error; a read that is cancelled counts for nothing."""
    values: list[Any] = [1, UnavailableError("down", retry_after=timedelta(seconds=3)), 2]
    begun = asyncio.Event()

    async def read() -> int:
        begun.set()
        await asyncio.sleep(0)
        found = values.pop(0)
        if isinstance(found, UnavailableError):
            raise found
        return int(found)

    snapshot = SharedRead(read, asyncio.Lock())
    left = asyncio.create_task(snapshot.get())
    await begun.wait()
    left.cancel()
    await asyncio.wait([left])
    monkeypatch.setattr(overview, "COUNTS_FOR", 0.05)
    assert list(await asyncio.gather(snapshot.get(), snapshot.get())) == [1, 1]
    await asyncio.sleep(0.06)
    for _ in range(2):
        with pytest.raises(UnavailableError, match="down"):
            await snapshot.get()
    await asyncio.sleep(0.06)
    assert await snapshot.get() == 2


async def test_snapshots_of_few_domains_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that somebody makes up do not fill the memory; the domains looked at last are kept."""
    monkeypatch.setattr(overview, "MOST_DOMAINS", 2)
    overviews = Overviews(object())  # type: ignore[arg-type]  # nothing is read here
    one, two = overviews.domain("one"), overviews.domain("two")
    assert overviews.domain("one") is one
    overviews.domain("three")
    assert overviews.domain("one") is one
    assert overviews.domain("two") is not two


async def test_without_a_database_an_overview_is_503(unreachable_url: str) -> None:
    """Neither call makes numbers up."""
    async with service_on(unreachable_url) as client:
        for path in (PATH, PATH, DOMAINS):
            answer = await client.get(path)
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("query", ["domain=", "state=active", f"domain={'d' * 129}", "domain=a%00"])
async def test_a_bad_parameter_is_422(shared: httpx.AsyncClient, query: str) -> None:
    """An overview takes the parameter `domain` and no other."""
    answer = await shared.get(f"{PATH}?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"#/query/{query.partition('=')[0]}"


async def test_domains_are_listed_with_their_counts(client: httpx.AsyncClient) -> None:
    """Pages have each domain once, by name, with the counts that its own call answers."""
    names = [f"domain {number}" for number in range(5)]
    for number, name in enumerate(names):
        events = [event | {"domain": name} for event in life(node(number))[: number + 1]]
        assert (await client.post("/v1/events", json=events)).status_code == 200
    found: list[Json] = []
    path: str | None = f"{DOMAINS}?limit=2"
    while path is not None:
        page = await client.get(path)
        found += page.json()["items"]
        cursor = page.json()["next_cursor"]
        assert ("link" in page.headers) is (cursor is not None)
        path = cursor and f"{DOMAINS}?limit=2&cursor={cursor}"
    assert [each["domain"] for each in found] == names
    for each in found:
        assert each == (await client.get("/v1/state-counts", params={"domain": each["domain"]})).json()
