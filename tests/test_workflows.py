"""WorkflowStore: compare-and-swap, actions that apply once, refused values, and removal of old actions."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from app import workflows as module
from app.concurrency.worker import working
from app.domain.workflows import MAX_STATE, Committed, StateConflict, Workflow
from app.errors import ActionConflictError, InvalidInputError
from app.settings import Settings
from app.store import quotas
from app.store import workflows as statements
from app.store.database import Connection, Database
from app.store.quotas import QuotaExceededError
from app.store.workflows import PRUNE_LOCK
from app.workflows import Pruner, QuotaWatch, WorkflowStore
from tests.conftest import application
from tests.processes import PATIENCE, serving

Json = dict[str, Any]

PROVENANCE: Json = {"effect_id": "effect-1", "timestamp": "2026-01-01T00:00:00Z"}


def by(action_id: str, **more: object) -> Json:
    """The provenance of an action."""
    return PROVENANCE | {"action_id": action_id} | more


@pytest.fixture(params=[True, False], ids=["joined", "alone"])
async def store(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[WorkflowStore]:
    """A store that joins concurrent calls, and one that does not."""
    store = WorkflowStore(database, joining=request.param)
    yield store
    await store.close()


async def committed(store: WorkflowStore, key: str, expected: int | None, state: Json, **more: Any) -> Workflow:
    """The row after a commit that must succeed."""
    outcome = await store.try_commit(key, expected, state, more.pop("provenance", PROVENANCE), **more)
    assert isinstance(outcome, Committed)
    assert not outcome.replayed
    return outcome.workflow


# --- Quotas --------------------------------------------------------------------------------------------------------


async def used(database: Database) -> list[int]:
    """The use of each quota."""
    return [each.used_bytes for each in await database.read(quotas.get_all)]


async def test_commits_are_charged_to_the_quotas_of_their_prefixes(store: WorkflowStore, database: Database) -> None:
    """Growth, shrinkage, creation and replays are charged right; a state over the quota is not stored."""
    await database.write(quotas.set_quota, "team/", 100)
    await committed(store, "team/a", None, {"x": "y" * 41}, provenance=by("one"))
    assert await used(database) == [50]
    with pytest.raises(QuotaExceededError):
        await store.try_commit("team/b", None, {"x": "y" * 42}, PROVENANCE)
    assert await store.get_state("team/b") is None
    await committed(store, "other", None, {"x": "y" * 1000})
    await committed(store, "team/a", 1, {"x": "y" * 11})
    assert await used(database) == [20]
    repeated = await store.try_commit("team/a", None, {"x": "y" * 41}, by("one"))
    assert isinstance(repeated, Committed)
    assert repeated.replayed
    assert isinstance(await store.try_commit("team/a", 1, {"x": "y"}, PROVENANCE), StateConflict)
    assert await used(database) == [20]
    await committed(store, "team/b", None, {"x": "y" * 71})
    assert await used(database) == [100]


async def test_one_commit_over_the_quota_fails_alone(store: WorkflowStore, database: Database) -> None:
    """If one commit of a batch exceeds its quota, the others are stored."""
    await database.write(quotas.set_quota, "team/", 100)
    keys = [f"other/{number}" for number in range(10)]
    asked = [store.try_commit(key, None, {"n": 1}, PROVENANCE) for key in keys]
    over = store.try_commit("team/a", None, {"x": "y" * 200}, PROVENANCE)
    *found, refused = await asyncio.gather(*asked, over, return_exceptions=True)
    assert all(isinstance(each, Committed) for each in found)
    assert isinstance(refused, QuotaExceededError)


async def test_many_writers_at_once_are_all_charged(store: WorkflowStore, database: Database) -> None:
    """With many writers, a quota's use is the size of what is stored, whoever wins."""
    await database.write(quotas.set_quota, "", 10_000_000)

    async def add(number: int) -> None:
        for _ in range(5):
            key = f"w{number % 3}"
            row = await store.get_state(key)
            state = {"x": "y" * ((number * 37) % 101 + 1)}
            await store.try_commit(key, row.version if row else None, state, PROVENANCE)

    await asyncio.gather(*map(add, range(12)))

    async def stored(connection: Connection) -> int:
        return int(await connection.fetchval("SELECT sum(octet_length(state::text)) FROM workflow_state"))

    assert await used(database) == [await database.read(stored)]


async def test_a_quota_that_is_set_later_is_found(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new quota counts once the last check for quotas is out of date; until then commits do not check."""
    monkeypatch.setattr(module, "QUOTA_LOOK", 0.05)
    watch = QuotaWatch(database)
    store = WorkflowStore(database, watch=watch)
    async with working(watch), asyncio.timeout(PATIENCE):
        await committed(store, "team/a", None, {"x": "y" * 200})
        await database.write(quotas.set_quota, "team/", 100)
        while not await watch.finds_quotas():  # noqa: ASYNC110 - it looks now and then
            await asyncio.sleep(0.01)
        with pytest.raises(QuotaExceededError):
            await store.try_commit("team/b", None, {"x": "y" * 200}, PROVENANCE)
    await store.close()


async def test_a_commit_over_the_quota_is_a_413(settings: Settings, database: Database) -> None:
    """A commit over the quota is a 413 that names the prefix and its limit."""
    await database.write(quotas.set_quota, "team/", 100)
    async with application(settings) as client:
        answer = await client.put(
            "/v1/workflows/team%2Fa",
            json={"state": {"x": "y" * 200}, "provenance": PROVENANCE},
            headers={"If-None-Match": "*"},
        )
        assert answer.status_code == 413, answer.text
        assert answer.json()["title"] == "Content Too Large"
        assert answer.json()["detail"] == (
            "the workflows that begin with 'team/' may take up 100 bytes: that is reached"
        )
        assert (await client.get("/v1/workflows/team%2Fa")).status_code == 404


# --- Compare and swap ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, 0])
async def test_a_workflow_is_created_once(store: WorkflowStore, nothing: int | None) -> None:
    """A commit without a row makes version 1; a second one gets the first one's row."""
    assert await store.get_state("a") is None
    row = await committed(store, "a", nothing, {"n": 1})
    assert row == Workflow("a", 1, {"n": 1}, row.updated_at, 1, PROVENANCE)
    assert await store.get_state("a") == row
    assert await store.try_commit("a", nothing, {"n": 2}, PROVENANCE) == StateConflict(0, row)


async def test_a_version_follows_the_one_that_was_read(store: WorkflowStore) -> None:
    """A commit on the current version makes the next version; on any other version it changes nothing."""
    await committed(store, "a", None, {"n": 1})
    row = await committed(store, "a", 1, {"m": [None, {}]}, schema_version=2, provenance=PROVENANCE | {"x": 1})
    assert row == Workflow("a", 2, {"m": [None, {}]}, row.updated_at, 2, PROVENANCE | {"x": 1})
    for expected in (0, 1, 3, 2**63 - 1):
        outcome = await store.try_commit("a", expected, {"n": 3}, PROVENANCE)
        assert outcome == StateConflict(expected, row)
    assert await store.get_state("a") == row


async def test_a_commit_on_a_workflow_that_is_not_there(store: WorkflowStore) -> None:
    """A commit that expects a version of a missing workflow is a conflict without a row."""
    outcome = await store.try_commit("a", 1, {"n": 1}, PROVENANCE)
    assert outcome == StateConflict(1, None)
    assert isinstance(outcome, StateConflict)
    assert outcome.actual_version is None


async def test_updated_at_is_the_databases_clock(store: WorkflowStore) -> None:
    """`updated_at` is the time of the commit in UTC, and never decreases from one version to the next."""
    rows = [await committed(store, "a", version, {"n": 1}) for version in range(20)]
    times = [row.updated_at for row in rows]
    assert times == sorted(times)
    assert times[0].utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - times[-1]) < timedelta(minutes=1)


@pytest.mark.parametrize("expected", [0, 1])
async def test_one_of_many_at_once_gets_through(store: WorkflowStore, expected: int) -> None:
    """Of 40 concurrent commits on one version one succeeds, and all others get its row."""
    if expected:
        await committed(store, "a", None, {"n": -1})
    outcomes = await asyncio.gather(
        *(store.try_commit("a", expected, {"n": number}, PROVENANCE) for number in range(40))
    )
    [winner] = [outcome.workflow for outcome in outcomes if isinstance(outcome, Committed)]
    assert winner.version == expected + 1
    assert [each for each in outcomes if each != Committed(winner)] == [StateConflict(expected, winner)] * 39


async def test_every_increment_lands_once(database: Database) -> None:
    """Ten writers on two stores that read, add one and retry until they succeed lose no increment."""
    stores = [WorkflowStore(database), WorkflowStore(database)]

    async def add(store: WorkflowStore, times: int) -> None:
        while times:
            row = await store.get_state("a")
            version, number = (row.version, row.state["n"]) if row else (0, 0)
            assert isinstance(number, int)
            outcome = await store.try_commit("a", version, {"n": number + 1}, PROVENANCE)
            times -= isinstance(outcome, Committed)

    async with asyncio.timeout(60):
        await asyncio.gather(*(add(stores[writer % 2], 10) for writer in range(10)))
    row = await stores[0].get_state("a")
    assert row is not None
    assert (row.version, row.state) == (100, {"n": 100})


async def test_workflows_at_once_do_not_mix(store: WorkflowStore) -> None:
    """Concurrent commits of 60 workflows, new and known, each get their own row."""
    keys = [f"workflow {number}" for number in range(60)]
    await asyncio.gather(*(committed(store, key, None, {"key": ""}) for key in keys[::2]))
    rows = await asyncio.gather(
        *(committed(store, key, (number + 1) % 2, {"key": key}) for number, key in enumerate(keys))
    )
    assert [(row.workflow_key, row.state["key"]) for row in rows] == [(key, key) for key in keys]
    assert [row.version for row in rows] == [2, 1] * 30
    assert await asyncio.gather(*(store.get_state(key) for key in keys)) == rows


async def test_batches_that_share_workflows_do_not_lock_each_other_out(database: Database) -> None:
    """Two stores that write the same workflows in opposite orders do not deadlock: each succeeds or conflicts."""
    stores = [WorkflowStore(database), WorkflowStore(database)]
    keys = [f"workflow {number}" for number in range(40)]
    async with asyncio.timeout(30):
        for expected in range(4):
            new, known = (expected, keys[::2]), (max(expected - 1, 0), keys[1::2] if expected else [])
            asked = [(key, version) for version, some in (new, known) for key in some]
            outcomes = await asyncio.gather(
                *(stores[0].try_commit(key, version, {"by": 0}, PROVENANCE) for key, version in asked),
                *(stores[1].try_commit(key, version, {"by": 1}, PROVENANCE) for key, version in reversed(asked)),
            )
            rows = [outcome.workflow for outcome in outcomes if isinstance(outcome, Committed)]
            assert sorted((row.workflow_key, row.version - 1) for row in rows) == sorted(asked)


# --- Actions -------------------------------------------------------------------------------------------------------


async def test_an_action_is_applied_once(store: WorkflowStore) -> None:
    """A repeated action gets its first answer, whatever the row is now and whatever version is expected."""
    first = await committed(store, "a", None, {"n": 1}, provenance=by("x"))
    second = await committed(store, "a", 1, {"n": 2}, provenance=by("y"), schema_version=3)
    third = await committed(store, "a", 2, {"n": 3})
    for expected in (0, 1, 2, 3, 9):
        assert await store.try_commit("a", expected, {"n": 1}, by("x")) == Committed(first, replayed=True)
        again = await store.try_commit("a", expected, {"n": 2}, by("y"), schema_version=3)
        assert again == Committed(second, replayed=True)
    assert await store.get_state("a") == third


async def test_an_action_that_is_sent_again_may_say_another_time(store: WorkflowStore) -> None:
    """A repeated action needs the same state and schema version only; its answer has the first provenance."""
    first = await committed(store, "a", None, {"b": 1, "a": 2}, provenance=by("x"))
    again = await store.try_commit("a", None, {"a": 2, "b": 1}, by("x", timestamp="2026-02-02T00:00:00+01:00"))
    assert again == Committed(first, replayed=True)


@pytest.mark.parametrize(
    ("state", "schema_version"), [({"n": 2}, 1), ({"n": 1}, 2), ({"n": "1"}, 1), ({"n": 1, "m": None}, 1)]
)
async def test_an_action_with_another_state(store: WorkflowStore, state: Json, schema_version: int) -> None:
    """The same action with another state or schema version is refused, with the version that it made."""
    await committed(store, "a", None, {"n": 0})
    row = await committed(store, "a", 1, {"n": 1}, provenance=by("x"))
    for expected in (1, 2, 7):
        with pytest.raises(ActionConflictError) as refused:
            await store.try_commit("a", expected, state, by("x"), schema_version=schema_version)
        assert (refused.value.action_id, refused.value.version) == ("x", 2)
    assert await store.get_state("a") == row


async def test_an_action_that_was_not_applied_may_be_sent_again(store: WorkflowStore) -> None:
    """A conflict does not record its action, which applies when sent again on the current version."""
    row = await committed(store, "a", None, {"n": 1})
    assert await store.try_commit("a", 7, {"n": 2}, by("x")) == StateConflict(7, row)
    assert (await committed(store, "a", 1, {"n": 3}, provenance=by("x"))).version == 2


async def test_an_action_is_of_one_workflow(store: WorkflowStore) -> None:
    """Two workflows may use the same action id; without an action id, or with null, there is no action."""
    for key in ("a", "b"):
        assert (await committed(store, key, None, {"n": 1}, provenance=by("x"))).version == 1
    for expected in (1, 2):
        null = PROVENANCE | {"action_id": None}
        assert (await committed(store, "a", expected, {"n": 1}, provenance=null)).version == expected + 1


@pytest.mark.parametrize("expected", [0, 1])
async def test_an_action_that_is_sent_many_times_at_once(store: WorkflowStore, expected: int) -> None:
    """Of 50 equal concurrent commits one is applied, and the other 49 get its answer."""
    if expected:
        await committed(store, "a", None, {"n": 0})
    outcomes = await asyncio.gather(*(store.try_commit("a", expected, {"n": 1}, by("x")) for _ in range(50)))
    rows = [outcome.workflow for outcome in outcomes if isinstance(outcome, Committed)]
    assert rows == [rows[0]] * 50
    assert Counter(outcome.replayed for outcome in outcomes if isinstance(outcome, Committed)) == {
        True: 49,
        False: 1,
    }


async def test_an_action_that_is_sent_at_once_with_two_states(store: WorkflowStore) -> None:
    """If one action is sent concurrently with two states, one applies and all commits with the other are refused."""
    outcomes = await asyncio.gather(
        *(store.try_commit("a", None, {"n": number % 2}, by("x")) for number in range(20)), return_exceptions=True
    )
    kinds = [Counter(type(outcome).__name__ for outcome in outcomes[half::2]) for half in (0, 1)]
    assert {"Committed": 10} in kinds
    assert {"ActionConflictError": 10} in kinds


@pytest.mark.usefixtures("anyio_backend")
@pytest.mark.parametrize("expected", [0, 1])
def test_an_action_that_is_sent_to_two_processes_at_once(expected: int, database_url: str, tmp_path: Path) -> None:
    """Of 50 equal PUTs to two services one applies; all get its answer, 49 of them marked as replayed."""
    body = {"state": {"step": "paid"}, "provenance": by("pay")}
    headers = {"If-Match": '"1"'} if expected else {"If-None-Match": "*"}
    with serving(tmp_path, database_url=database_url) as one, serving(tmp_path, database_url=database_url) as two:

        def put(number: int) -> httpx.Response:
            url = f"{(one, two)[number % 2].url}/v1/workflows/order%2F17"
            return httpx.put(url, json=body, headers=headers, timeout=PATIENCE)

        if expected:
            first = {"state": {"step": "new"}, "provenance": PROVENANCE}
            created = httpx.put(
                f"{one.url}/v1/workflows/order/17", json=first, headers={"If-None-Match": "*"}, timeout=PATIENCE
            )
            assert created.status_code == 201
        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(put, range(50)))
        seen = {(answer.status_code, answer.headers["etag"], answer.text) for answer in answers}
        assert [(status, etag) for status, etag, _ in seen] == [(200 if expected else 201, f'"{expected + 1}"')]
        assert Counter(answer.headers.get("idempotency-replayed") for answer in answers) == {None: 1, "true": 49}
        assert httpx.get(f"{two.url}/v1/workflows/order/17", timeout=PATIENCE).text == answers[0].text


# --- What can't be kept --------------------------------------------------------------------------------------------


def nested(levels: int) -> Json:
    """Objects nested this deep."""
    return {"in": nested(levels - 1)} if levels > 1 else {}


REFUSED: dict[str, tuple[str, Json]] = {
    "no key": ("#/path/workflow_key", {"workflow_key": ""}),
    "a long key": ("#/path/workflow_key", {"workflow_key": "\N{GRINNING FACE}" * 256}),
    "NUL in the key": ("#/path/workflow_key", {"workflow_key": "a\0b"}),
    "a lone surrogate in the key": ("#/path/workflow_key", {"workflow_key": "\ud83d"}),
    "a version below none": ("#/expected_version", {"expected_version": -1}),
    "a version too large": ("#/expected_version", {"expected_version": 2**63}),
    "an empty state": ("#/state", {"state": {}}),
    "a large state": ("#/state", {"state": {"x": "x" * (MAX_STATE - 7)}}),
    "a deep state": ("#/state", {"state": nested(65)}),
    "NUL in the state": ("#/state/a/1", {"state": {"a": [1, "x\0"]}}),
    "NUL in a name of the state": ("#/state/a", {"state": {"a": {"x\0": 1}}}),
    "a lone surrogate in the state": ("#/state", {"state": {"a": "\ud83d"}}),
    "no number in the state": ("#/state", {"state": {"a": float("nan")}}),
    "a number too large": ("#/state", {"state": {"a": 10**5000}}),
    "no JSON in the state": ("#/state", {"state": {"a": object()}}),
    "no effect": ("#/provenance/effect_id", {"provenance": {"timestamp": "2026-01-01T00:00:00Z"}}),
    "an empty effect": ("#/provenance/effect_id", {"provenance": PROVENANCE | {"effect_id": ""}}),
    "an effect that is no text": ("#/provenance/effect_id", {"provenance": PROVENANCE | {"effect_id": 1}}),
    "no time": ("#/provenance/timestamp", {"provenance": {"effect_id": "e"}}),
    "a time without a zone": (
        "#/provenance/timestamp",
        {"provenance": PROVENANCE | {"timestamp": "2026-01-01T00:00"}},
    ),
    "a time long ago": (
        "#/provenance/timestamp",
        {"provenance": PROVENANCE | {"timestamp": "1899-12-31T23:59:59Z"}},
    ),
    "an empty action": ("#/provenance/action_id", {"provenance": by("")}),
    "a long action": ("#/provenance/action_id", {"provenance": by("x" * 256)}),
    "an action that is no text": ("#/provenance/action_id", {"provenance": PROVENANCE | {"action_id": 1}}),
    "NUL in the provenance": ("#/provenance/note", {"provenance": PROVENANCE | {"note": "\0"}}),
    "a deep provenance": ("#/provenance", {"provenance": PROVENANCE | nested(65)}),
    "schema version 0": ("#/schema_version", {"schema_version": 0}),
    "a schema version too large": ("#/schema_version", {"schema_version": 2**31}),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_can_not_be_kept_is_refused(database: Database, case: str) -> None:
    """Values that PostgreSQL or the contract cannot hold are refused before any statement, with the field's name."""
    pointer, changes = REFUSED[case]
    given = {"workflow_key": "a", "expected_version": None, "state": {"n": 1}, "provenance": PROVENANCE, **changes}
    store = WorkflowStore(database)
    with pytest.raises(InvalidInputError) as refused:
        await store.try_commit(**given)
    assert [fault.pointer for fault in refused.value.faults] == [pointer]


async def test_everything_that_is_wrong_is_named(database: Database) -> None:
    """One error names all wrong fields."""
    with pytest.raises(InvalidInputError) as refused:
        await WorkflowStore(database).try_commit("a", None, {}, {"effect_id": 1}, schema_version=0)
    assert [fault.pointer for fault in refused.value.faults] == [
        "#/state",
        "#/schema_version",
        "#/provenance/effect_id",
    ]


@pytest.mark.parametrize(
    "state",
    [
        {"x": "x" * (MAX_STATE - 8)},
        nested(63) | {"a": 1},
        {"": {"ü": ["\u2028", "😀", "\x7f", "\\u0000", "\x1f"]}},
        {"i": 10**400, "f": [0.1, 5e-324, -1], "t": [True, False, None]},
    ],
    ids=["large", "deep", "text", "numbers"],
)
async def test_what_is_kept_comes_back(store: WorkflowStore, state: Json) -> None:
    """States at the limits, and the longest keys, are read as they were written."""
    key = "\N{GRINNING FACE}" * 255
    row = await committed(store, key, None, state, provenance=by("\N{GRINNING FACE}" * 255))
    assert row.state == state
    assert await store.get_state(key) == row
    assert await store.try_commit(key, None, state, by("\N{GRINNING FACE}" * 255)) == Committed(row, replayed=True)


# --- Old actions ---------------------------------------------------------------------------------------------------

AGE = "UPDATE workflow_actions SET committed_at = committed_at - interval '7 days'"
WEEK = timedelta(days=7)


async def actions(database: Database) -> list[str]:
    """The recorded actions."""
    rows = await database.read(
        lambda connection: connection.fetch("SELECT action_id FROM workflow_actions ORDER BY 1")
    )
    return [row[0] for row in rows]


async def test_old_actions_are_removed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Actions older than the retention are removed in batches, younger ones and all workflows stay."""
    monkeypatch.setattr(statements, "PRUNE_ROWS", 2)
    monkeypatch.setattr("app.workflows.PRUNE_ROWS", 2)
    store, pruner = WorkflowStore(database), Pruner(database, WEEK)
    for number in range(5):
        await committed(store, f"old {number}", None, {"n": 1}, provenance=by(f"old {number}"))
    await database.write(lambda connection: connection.execute(AGE))
    row = await committed(store, "young", None, {"n": 1}, provenance=by("young"))
    assert await pruner.prune() == 5
    assert await actions(database) == ["young"]
    assert await store.try_commit("young", None, {"n": 1}, by("young")) == Committed(row, replayed=True)
    kept = await store.get_state("old 1")
    assert kept is not None
    assert await store.try_commit("old 1", None, {"n": 1}, by("old 1")) == StateConflict(0, kept)
    assert await pruner.prune() == 0


async def test_one_session_at_a_time_removes_actions(database_url: str, database: Database) -> None:
    """While another session removes actions, a removal does nothing and does not wait."""
    await committed(WorkflowStore(database), "a", None, {"n": 1}, provenance=by("x"))
    await database.write(lambda connection: connection.execute(AGE))
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("SELECT pg_advisory_lock($1)", PRUNE_LOCK)
        async with asyncio.timeout(5):
            assert await Pruner(database, WEEK).prune() == 0
        assert await actions(database) == ["x"]
    finally:
        await other.close()


async def test_removing_does_not_wait_and_nobody_waits_for_it(database_url: str, database: Database) -> None:
    """A removal skips actions that another session holds; commits and replays continue during it."""
    store = WorkflowStore(database)
    row = await committed(store, "a", None, {"n": 1}, provenance=by("x"))
    await committed(store, "b", None, {"n": 1}, provenance=by("y"))
    await database.write(lambda connection: connection.execute(AGE))
    other = await asyncpg.connect(database_url)
    try:
        async with asyncio.timeout(10):
            transaction = other.transaction()
            await transaction.start()
            await other.execute("SELECT FROM workflow_actions WHERE action_id = 'x' FOR UPDATE")
            assert await Pruner(database, WEEK).prune() == 1
            assert await actions(database) == ["x"]
            await other.execute("DELETE FROM workflow_actions")
            again = await store.try_commit("a", None, {"n": 1}, by("x"))
            assert isinstance(again, Committed)
            assert again.replayed
            await committed(store, "a", 1, {"n": 2}, provenance=by("z"))
            await transaction.commit()
    finally:
        await other.close()
    assert row.version == 1


async def test_the_pruner_goes_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pruner removes old actions periodically, and tries again after a failure of the database."""
    monkeypatch.setattr("app.workflows.PRUNE_LEAST", 0.01)
    await committed(WorkflowStore(database), "a", None, {"n": 1}, provenance=by("x"))
    failing = Database("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1, statement_timeout=WEEK)
    pruner = Pruner(failing, timedelta(milliseconds=10))
    write: Callable[..., Any] = failing.write
    calls = 0

    async def mend(*work: Any) -> Any:
        nonlocal calls
        calls += 1
        return await (write if calls == 1 else database.write)(*work)

    monkeypatch.setattr(failing, "write", mend)
    async with working(pruner), asyncio.timeout(20):
        while await actions(database):  # noqa: ASYNC110 - what it removes is in the server
            await asyncio.sleep(0.01)
    assert calls > 1
