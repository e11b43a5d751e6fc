"""Workflows read and changed with the client, by many at once, through a proxy that loses answers."""

import asyncio
import math
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from app import main
from app.api.asgi import Receive, Scope, Send
from app.settings import Settings
from pqs_client import (
    ActionConflictError,
    Client,
    Committed,
    ConnectionFailedError,
    InvalidError,
    NotFoundError,
    PreconditionFailedError,
    Retry,
    State,
    UnexpectedAnswerError,
)
from pqs_client.workflows import LONGEST_WAIT
from tests.client.conftest import asking
from tests.client.proxy import Proxy
from tests.making import Json
from tests.processes import PATIENCE, Service, serving

QUICK = Retry(attempts=8, base=0.001, cap=0.01)
PROVENANCE: Json = {"effect_id": "test", "timestamp": "2026-01-01T00:00:00Z", "more": [1, None]}


def with_action() -> Json:
    """A provenance with its own action id."""
    return PROVENANCE | {"action_id": str(uuid4())}


def counted(state: State) -> State:
    """The state with its count raised by one."""
    number = state.get("number", 0)
    assert isinstance(number, int)
    return {"number": number + 1}


@pytest.fixture
def key() -> str:
    """The key of a workflow that no other test uses."""
    return f"test/{uuid4()}"


@pytest.fixture
async def through(proxy: Proxy) -> AsyncIterator[Client]:
    """A client of the service behind the proxy."""
    async with Client(proxy.url, retry=QUICK) as client:
        yield client


async def test_a_workflow_is_created_committed_and_read(pqs: Client) -> None:
    """A row is read as it was written, with versions from 1."""
    created = await pqs.workflows.create("key", {"step": "one"}, PROVENANCE, schema_version=3)
    assert not created.replayed
    assert (created.workflow.version, created.workflow.schema_version) == (1, 3)
    committed = await pqs.workflows.commit("key", 1, {"step": "two", "deep": {"a": [1.5, None]}}, PROVENANCE)
    row = await pqs.workflows.get("key")
    assert row == committed.workflow
    assert (row.workflow_key, row.version, row.schema_version) == ("key", 2, 1)
    assert row.state == {"step": "two", "deep": {"a": [1.5, None]}}
    assert row.provenance["more"] == [1, None]
    assert row.updated_at.tzinfo is not None


async def test_a_row_of_another_key_is_an_error(settings: Settings) -> None:
    """If a proxy merges slashes, the row of the other workflow raises an error and is not returned."""
    app = main.create_app(settings)

    async def merging(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].replace("//", "/")
        headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
        await app({**scope, "path": path, "raw_path": path.encode(), "headers": headers}, receive, send)

    async with app.router.lifespan_context(app), asking(merging) as client:
        await client.workflows.create("orders/17", {"a": 1}, PROVENANCE)
        with pytest.raises(UnexpectedAnswerError, match="'orders//17' was asked for"):
            await client.workflows.get("orders//17")
        with pytest.raises(UnexpectedAnswerError, match="is about 'orders/17'"):
            await client.workflows.commit("orders//17", 1, {"a": 2}, PROVENANCE)
        with pytest.raises(UnexpectedAnswerError):
            await client.workflows.update("orders//17", counted, initial={})


async def test_what_is_known_already_is_given_back(pqs: Client) -> None:
    """With `known`, an unchanged row is that very object, and a changed row is a new one."""
    known = (await pqs.workflows.create("key", {"a": 1}, PROVENANCE)).workflow
    assert await pqs.workflows.get("key", known=known) is known
    await pqs.workflows.commit("key", 1, {"a": 2}, PROVENANCE)
    assert (await pqs.workflows.get("key", known=known)).version == 2


@pytest.mark.parametrize(
    "name", ["a/b", "/", "a b", "größe/\u6f22", "50%", "%2F", "a?b#c", ".", "..", "a/../b", "x" * 255]
)
async def test_any_key_names_one_workflow(pqs: Client, name: str) -> None:
    """A key may contain characters with a meaning in paths, and comes back unchanged."""
    await pqs.workflows.create(name, {"name": name}, PROVENANCE)
    row = await pqs.workflows.get(name)
    assert (row.workflow_key, row.state) == (name, {"name": name})


async def test_a_workflow_that_is_not_there_is_not_found(pqs: Client) -> None:
    """A key without a row raises NotFoundError."""
    with pytest.raises(NotFoundError):
        await pqs.workflows.get("nothing")


async def test_a_commit_on_another_version_has_the_row(pqs: Client) -> None:
    """A conflict has both versions and the current row."""
    row = (await pqs.workflows.create("key", {"a": 1}, PROVENANCE)).workflow
    with pytest.raises(PreconditionFailedError) as caught:
        await pqs.workflows.commit("key", 7, {"a": 2}, PROVENANCE)
    assert (caught.value.expected_version, caught.value.actual_version) == (7, 1)
    assert caught.value.current == row
    with pytest.raises(PreconditionFailedError) as caught:
        await pqs.workflows.create("key", {"a": 2}, PROVENANCE)
    assert (caught.value.expected_version, caught.value.current) == (None, row)


async def test_a_commit_on_nothing_has_no_row(pqs: Client) -> None:
    """A conflict about a missing workflow says that there is no row."""
    with pytest.raises(PreconditionFailedError) as caught:
        await pqs.workflows.commit("nothing", 7, {"a": 2}, PROVENANCE)
    assert (caught.value.actual_version, caught.value.current) == (None, None)


async def test_an_action_is_applied_once(pqs: Client) -> None:
    """A repeated action gets its first answer; with another state it raises ActionConflictError."""
    provenance = with_action()
    first = await pqs.workflows.create("key", {"a": 1}, provenance)
    await pqs.workflows.commit("key", 1, {"a": 2}, with_action())
    assert await pqs.workflows.create("key", {"a": 1}, provenance) == Committed(first.workflow, replayed=True)
    with pytest.raises(ActionConflictError) as caught:
        await pqs.workflows.commit("key", 2, {"a": 3}, provenance)
    assert (caught.value.status, caught.value.version) == (409, 1)


async def test_what_is_wrong_with_a_commit_is_said(pqs: Client) -> None:
    """An invalid commit raises an InvalidError that points at the field."""
    with pytest.raises(InvalidError) as caught:
        await pqs.workflows.create("key", {"a": 1}, {"effect_id": "test"})
    assert [fault.pointer for fault in caught.value.errors] == ["#/provenance/timestamp"]


async def test_workflows_are_listed_by_their_change(pqs: Client) -> None:
    """The list's pages have each workflow once, oldest change first, and may start at a time."""
    for number in range(5):
        await pqs.workflows.create(f"key {number}", {"a": 1}, PROVENANCE)
    await pqs.workflows.commit("key 0", 1, {"a": 2}, PROVENANCE)
    pages = [page async for page in pqs.workflows.pages(limit=2)]
    assert [len(page.items) for page in pages] == [2, 2, 1]
    items = [item for page in pages for item in page.items]
    assert [item.workflow_key for item in items] == ["key 1", "key 2", "key 3", "key 4", "key 0"]
    [rest] = [page async for page in pqs.workflows.pages(updated_since=items[3].updated_at)]
    assert rest.items == items[3:]
    [last] = [page async for page in pqs.workflows.pages(cursor=pages[1].next_cursor)]
    assert last.items == items[4:]
    [newest] = [page async for page in pqs.workflows.pages(order="newest")]
    assert newest.items == items[::-1]
    [one] = [page async for page in pqs.workflows.pages(order="key", key_prefix="key 3")]
    assert one.items == items[2:3]


# --- Updates -------------------------------------------------------------------------------------------------------


async def test_an_update_commits_what_the_reducer_makes(pqs: Client) -> None:
    """An update reads, reduces and commits; its provenance gets an action id, an effect and a time."""
    await pqs.workflows.create("key", {"number": 4}, PROVENANCE, schema_version=2)
    row = await pqs.workflows.update("key", counted)
    assert row == await pqs.workflows.get("key")
    assert (row.version, row.state, row.schema_version) == (2, {"number": 5}, 2)
    assert set(row.provenance) == {"effect_id", "timestamp", "action_id"}
    assert datetime.fromisoformat(str(row.provenance["timestamp"])) <= datetime.now(UTC)


async def test_an_update_has_the_provenance_that_it_is_given(pqs: Client) -> None:
    """The caller's provenance fields are sent, in place of generated ones."""
    row = await pqs.workflows.update("key", counted, initial={}, provenance={"effect_id": "count", "by": "test"})
    assert (row.provenance["effect_id"], row.provenance["by"]) == ("count", "test")
    assert row.provenance["action_id"]


async def test_an_update_makes_its_own_action_id(pqs: Client) -> None:
    """An update with a given action id is refused before a request is sent."""
    with pytest.raises(ValueError, match="action id"):
        await pqs.workflows.update("key", counted, initial={}, provenance={"action_id": "mine"})


async def test_what_is_no_json_is_not_sent(pqs: Client) -> None:
    """NaN is refused, and never sent as null."""
    with pytest.raises(ValueError, match="JSON"):
        await pqs.workflows.update("key", lambda _: {"number": math.nan}, initial={})


async def test_an_update_of_nothing_needs_an_initial_state(pqs: Client) -> None:
    """A missing workflow raises NotFoundError without `initial`, and is created with it."""
    with pytest.raises(NotFoundError):
        await pqs.workflows.update("key", counted)
    initial = {"number": 10}
    row = await pqs.workflows.update("key", counted, initial=initial, schema_version=4)
    assert (row.version, row.state, row.schema_version) == (1, {"number": 11}, 4)
    assert initial == {"number": 10}


async def test_a_reducer_with_nothing_to_do_commits_nothing(pqs: Client) -> None:
    """If the reducer returns None the row stays, and the update returns None."""
    await pqs.workflows.create("key", {"a": 1}, PROVENANCE)
    assert await pqs.workflows.update("key", lambda _state: None) is None
    assert (await pqs.workflows.get("key")).version == 1


async def test_a_reducer_may_change_what_it_is_given(pqs: Client) -> None:
    """The reducer gets a new copy of the state for each attempt, and of the initial state too."""

    def push(state: State) -> State:
        items = state["items"]
        assert isinstance(items, list)
        items.append(len(items))
        return state

    initial: State = {"items": []}
    await asyncio.gather(*(pqs.workflows.update("key", push, initial=initial) for _ in range(5)))
    assert (await pqs.workflows.get("key")).state == {"items": [0, 1, 2, 3, 4]}
    assert initial == {"items": []}


async def test_an_error_of_the_reducer_is_the_updates(pqs: Client) -> None:
    """An exception of the reducer is raised unchanged, and nothing is committed."""
    await pqs.workflows.create("key", {"a": 1}, PROVENANCE)

    def fail(_state: State) -> State:
        raise LookupError("no such step")

    with pytest.raises(LookupError, match="no such step"):
        await pqs.workflows.update("key", fail)
    assert (await pqs.workflows.get("key")).version == 1


class Rival:
    """A reducer that counts, and lets another client commit first this many times."""

    def __init__(self, service: Service, key: str, times: int) -> None:
        self._service = service
        self._key = key
        self._times = times
        self.seen: list[State] = []

    def __call__(self, state: State) -> State:
        """Count, after the rival's commit if any is left."""
        self.seen.append(state)
        if len(self.seen) <= self._times:
            with self._service.client() as http:
                tag = {"If-Match": http.get(f"/v1/workflows/{self._key}").headers["etag"]}
                body = {"state": {"number": 10 * len(self.seen)}, "provenance": PROVENANCE}
                http.put(f"/v1/workflows/{self._key}", json=body, headers=tag).raise_for_status()
        return counted(state)


async def test_the_first_conflict_is_computed_anew_at_once(service: Service, key: str) -> None:
    """After the first conflict the reducer gets the answer's row, without a wait."""

    async def sleep(seconds: float) -> None:
        pytest.fail(f"waited for {seconds} s")

    rival = Rival(service, key, 1)
    async with Client(service.url, sleep=sleep) as client:
        await client.workflows.create(key, {"number": 0}, PROVENANCE)
        row = await client.workflows.update(key, rival)
    assert rival.seen == [{"number": 0}, {"number": 10}]
    assert (row.version, row.state) == (3, {"number": 11})


async def test_repeated_conflicts_wait_longer_each_time(service: Service, key: str) -> None:
    """After every second conflict an update waits for a share of a growing bound, and reads again."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    rival = Rival(service, key, 6)
    async with Client(service.url, sleep=sleep, jitter=lambda: 1.0) as client:
        await client.workflows.create(key, {"number": 0}, PROVENANCE)
        row = await client.workflows.update(key, rival)
    assert [state["number"] for state in rival.seen] == [0, 10, 20, 30, 40, 50, 60]
    assert (row.version, row.state) == (8, {"number": 61})
    assert waits == [waits[0], min(2 * waits[0], LONGEST_WAIT), min(4 * waits[0], LONGEST_WAIT)]


async def test_an_update_gives_up_when_its_patience_ends(service: Service, key: str) -> None:
    """If conflicts outlast an update's patience, the last conflict is raised."""
    rival = Rival(service, key, 1000)
    async with Client(service.url) as client:
        await client.workflows.create(key, {"number": 0}, PROVENANCE)
        with pytest.raises(PreconditionFailedError):
            await client.workflows.update(key, rival, patience=0.2)
        assert (await client.workflows.get(key)).state == {"number": 10 * len(rival.seen)}


async def test_a_workflow_that_appears_meanwhile_is_built_on(service: Service, key: str) -> None:
    """An update that would create a workflow builds on one that another client has created meanwhile."""
    made: list[State] = []

    def reducer(state: State) -> State:
        if not made:
            with service.client() as http:
                body = {"state": {"number": 7}, "provenance": PROVENANCE}
                answer = http.put(f"/v1/workflows/{key}", json=body, headers={"If-None-Match": "*"})
                made.append(answer.raise_for_status().json()["state"])
        return counted(state)

    async with Client(service.url) as client:
        row = await client.workflows.update(key, reducer, initial={})
    assert (row.version, row.state) == (2, {"number": 8})


# --- Many at once, and what gets lost ------------------------------------------------------------------------------


async def test_every_increment_of_many_clients_lands_once(service: Service, key: str) -> None:
    """Concurrent updates of one key lose and repeat nothing, and versions have no gap."""
    clients, each = 6, 10
    async with AsyncExitStack() as stack:
        several = [await stack.enter_async_context(Client(service.url)) for _ in range(clients)]

        async def count(client: Client) -> list[int]:
            return [(await client.workflows.update(key, counted, initial={})).version for _ in range(each)]

        versions = await asyncio.gather(*map(count, several))
        row = await several[0].workflows.get(key)
    assert row.state == {"number": clients * each}
    assert sorted(version for own in versions for version in own) == list(range(1, clients * each + 1))


@pytest.mark.parametrize("trouble", ["cut_requests", "lose_answers"])
async def test_an_update_whose_answers_are_lost_lands_once(
    through: Client, proxy: Proxy, key: str, trouble: str
) -> None:
    """An update is sent again under its action id, and is applied once, whichever message is lost."""
    for number in range(1, 9):
        setattr(proxy, trouble, number % 4)
        row = await through.workflows.update(key, counted, initial={})
        assert (row.version, row.state) == (number, {"number": number})


async def test_a_commit_with_an_action_id_is_sent_again(through: Client, proxy: Proxy, key: str) -> None:
    """A commit with an action id is repeated, and reports that an earlier request applied it."""
    proxy.lose_answers = 1
    committed = await through.workflows.create(key, {"a": 1}, with_action())
    assert committed.replayed
    assert committed.workflow.version == 1


async def test_a_commit_without_an_action_id_is_not_sent_again(through: Client, proxy: Proxy, key: str) -> None:
    """A commit without an action id is not repeated; its error says that it may be applied."""
    proxy.lose_answers = 1
    with pytest.raises(ConnectionFailedError) as caught:
        await through.workflows.create(key, {"a": 1}, PROVENANCE)
    assert caught.value.perhaps_done
    assert (await through.workflows.get(key)).version == 1


async def test_updates_outlive_a_service_that_is_killed(database_url: str, tmp_path: Path) -> None:
    """Updates under way when the service is killed go on with the next one, and each is applied once."""
    clients, each = 4, 10
    with serving(tmp_path, database_url=database_url) as first:
        async with Proxy(first.url) as proxy, AsyncExitStack() as stack:
            back = asyncio.Event()
            some = asyncio.Event()

            async def sleep(_seconds: float) -> None:
                if not back.is_set():
                    some.set()
                await back.wait()
                await asyncio.sleep(0.01)

            async def count(client: Client) -> int:
                for number in range(each):
                    row = await client.workflows.update("key", counted, initial={})
                    if number == each // 2:
                        first.signal(signal.SIGKILL)
                return row.version

            several = [await stack.enter_async_context(Client(proxy.url, sleep=sleep)) for _ in range(clients)]
            counting = asyncio.gather(*map(count, several))
            async with asyncio.timeout(PATIENCE):
                await some.wait()
            first.signal(signal.SIGKILL)
            first.process.wait()
            with serving(tmp_path, database_url=database_url) as second:
                proxy.target = second.url
                back.set()
                last = max(await counting)
                assert last == clients * each
                assert (await several[0].workflows.get("key")).state == {"number": last}
