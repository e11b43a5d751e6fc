"""Workflows are linearizable despite kills of services; and the check of that finds planted violations."""

import asyncio
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import asyncpg
import msgspec
import pytest

from tests.linearizability import Operation, violation
from tests.processes import PATIENCE, Service, serving, until

ROOT = Path(__file__).resolve().parent.parent

# Some of these tests are no coroutines, and use a database of their own.
pytestmark = pytest.mark.usefixtures("anyio_backend")


def commit(
    begin: float, end: float | None, expected: int, value: str, answer: str = "", version: int = 0, **more: str
) -> Operation:
    """A commit of `value`, and its answer."""
    seen = more.pop("seen", value if answer in {"committed", "replayed"} else "")
    return Operation("k", begin, end, value, expected, more.pop("action", ""), answer, version, seen)


def read(begin: float, end: float | None, version: int, seen: str) -> Operation:
    """A read, and the row it returned."""
    return Operation("k", begin, end, answer="row", version=version, seen=seen)


CREATED = commit(0, 1, 0, "a", "committed", 1)

GOOD: dict[str, list[Operation]] = {
    "nothing": [],
    "one after the other": [read(0, 1, 0, ""), commit(2, 3, 0, "a", "committed", 1), read(4, 5, 1, "a")],
    "the winner of a race": [
        CREATED,
        commit(2, 5, 1, "b", "committed", 2),
        commit(2, 5, 1, "c", "conflict", 2, seen="b"),
        read(3, 4, 1, "a"),
        read(3, 5, 2, "b"),
    ],
    "an answer that overtakes": [CREATED, read(2, 9, 1, "a"), commit(3, 4, 1, "b", "committed", 2)],
    "no answer, and done": [CREATED, commit(2, None, 1, "b"), read(3, 4, 1, "a"), read(5, 6, 2, "b")],
    "no answer, and not done": [CREATED, commit(2, None, 1, "b"), commit(3, 4, 1, "c", "committed", 2)],
    "no answer, and done late": [
        CREATED,
        commit(2, None, 1, "b"),
        commit(5, 6, 1, "c", "conflict", 2, seen="b"),
    ],
    "an action that is sent again": [
        commit(0, 1, 0, "a", "committed", 1, action="x"),
        commit(2, 3, 1, "b", "committed", 2, action="y"),
        commit(4, 5, 0, "a", "replayed", 1, action="x"),
        commit(6, 7, 2, "c", "refused", 2, action="y"),
        read(8, 9, 2, "b"),
    ],
    "an action without an answer, sent again": [
        CREATED,
        commit(2, None, 1, "b", action="x"),
        commit(3, 4, 1, "b", "replayed", 2, action="x"),
    ],
}
BAD: dict[str, list[Operation]] = {
    "a lost update": [
        CREATED,
        commit(2, 5, 1, "b", "committed", 2),
        commit(3, 6, 1, "c", "committed", 2),
        read(7, 8, 2, "c"),
    ],
    "a lost update that was answered as the next version": [
        CREATED,
        commit(2, 5, 1, "b", "committed", 2),
        commit(3, 6, 1, "c", "committed", 3),
    ],
    "a commit that is gone": [CREATED, commit(2, 3, 1, "b", "committed", 2), read(4, 5, 1, "a")],
    "a stale read": [CREATED, commit(2, 3, 1, "b", "committed", 2), read(4, 5, 2, "b"), read(6, 7, 1, "a")],
    "reads that go back": [CREATED, commit(2, 9, 1, "b", "committed", 2), read(3, 4, 2, "b"), read(5, 6, 1, "a")],
    "a read of what nobody wrote": [CREATED, read(2, 3, 1, "b")],
    "a read of what is yet to be written": [CREATED, read(2, 3, 2, "b"), commit(4, 5, 1, "b", "committed", 2)],
    "a conflict with nobody": [CREATED, commit(2, 3, 1, "b", "conflict", 1, seen="a")],
    "a conflict with what is over": [
        CREATED,
        commit(2, 3, 1, "b", "committed", 2),
        commit(4, 5, 3, "c", "conflict", 1, seen="a"),
    ],
    "a gap": [CREATED, commit(2, 3, 1, "b", "committed", 3)],
    "a doubled action": [
        CREATED,
        commit(2, 3, 1, "b", "committed", 2, action="x"),
        commit(4, 5, 2, "b", "committed", 3, action="x"),
    ],
    "a doubled action without an answer": [
        CREATED,
        commit(2, None, 1, "b", action="x"),
        read(3, 4, 2, "b"),
        commit(5, 6, 2, "b", "committed", 3, action="x"),
    ],
    "a replay of what was never applied": [CREATED, commit(2, 3, 1, "b", "replayed", 2, action="x")],
    "a replay with another version": [
        commit(0, 1, 0, "a", "committed", 1, action="x"),
        commit(2, 3, 1, "b", "committed", 2),
        commit(4, 5, 0, "a", "replayed", 2, action="x"),
    ],
    "no answer, and done twice": [
        CREATED,
        commit(2, None, 1, "b"),
        read(3, 4, 2, "b"),
        commit(5, 6, 2, "c", "committed", 3),
        read(7, 8, 4, "b"),
    ],
    "no answer, and done before it was sent": [CREATED, read(2, 3, 2, "b"), commit(4, None, 1, "b")],
}


@pytest.mark.parametrize("case", GOOD)
def test_what_a_workflow_may_answer(case: str) -> None:
    """A linearizable history has no violation."""
    assert violation(GOOD[case]) is None


@pytest.mark.parametrize("case", BAD)
def test_what_no_workflow_answers(case: str) -> None:
    """A planted violation is found, whatever else is in the history."""
    assert violation(BAD[case]) is not None
    others = [commit(20 + n, 20.5 + n, 90, f"v{n}", "conflict", 91, seen="z") for n in range(3)]
    assert violation([*BAD[case], *others]) is not None


# --- Real histories ------------------------------------------------------------------------------------------------

CLIENTS, OPERATIONS, KEYS = 4, 120, 3  # in each of two processes


@contextmanager
def recording(urls: Sequence[str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Two processes of clients that send requests to these services and record the answers."""
    with ExitStack() as stack:
        clients = []
        for seed in ("one", "two"):
            arguments = [seed, str(CLIENTS), str(OPERATIONS), str(KEYS), *urls]
            client = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.linearizability", *arguments], cwd=ROOT, stdout=subprocess.PIPE
                )
            )
            stack.callback(client.kill)
            clients.append(client)
        yield clients


def histories(clients: Sequence["subprocess.Popen[bytes]"]) -> dict[str, list[Operation]]:
    """The clients' observations, by key."""
    seen = defaultdict(list)
    for client in clients:
        printed, _ = client.communicate(timeout=3 * PATIENCE)
        assert client.returncode == 0
        for line in printed.splitlines():
            operation = msgspec.json.decode(line, type=Operation)
            seen[operation.key].append(operation)
    return seen


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    """The rows of a statement."""

    async def ask() -> list[tuple[object, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def kill(service: Service) -> None:
    """End a service with SIGKILL."""
    service.signal(signal.SIGKILL)
    service.await_end()


def has_written(url: str, goal: int) -> bool:
    """Whether there were this many commits."""
    return query(url, f"SELECT coalesce(sum(version), 0) >= {goal} FROM workflow_state") == [(True,)]


CUT = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND application_name = 'pqs'"
)


@pytest.mark.parametrize("killing", [False, True], ids=["all live on", "services and backends are killed"])
def test_real_histories_are_linearizable(killing: bool, database_url: str, tmp_path: Path) -> None:
    """What clients of several services observe of a workflow is linearizable; versions of each are 1, 2, 3, … without
    gap or repeat, and each has its action."""
    with ExitStack() as stack:
        services = [
            stack.enter_context(serving(tmp_path, database_url=database_url, log_level="error"))
            for _ in range(3 if killing else 2)
        ]
        clients = stack.enter_context(recording([service.url for service in services]))
        if killing:
            for goal, victim in ((10, None), (25, services[0]), (40, None), (55, services[1]), (70, None)):
                until(partial(has_written, database_url, goal), f"{goal} commits", poll=0.01)
                if victim is None:
                    query(database_url, CUT)
                else:
                    kill(victim)
        seen = histories(clients)
    assert {key: violation(history) for key, history in seen.items()} == dict.fromkeys(seen)
    answers = {operation.answer for history in seen.values() for operation in history}
    assert answers >= {"row", "committed", "replayed", "conflict"}
    assert ("" in answers) == killing
    for key, version in query(database_url, "SELECT workflow_key, version FROM workflow_state"):
        made = query(database_url, f"SELECT version FROM workflow_actions WHERE workflow_key = '{key}' ORDER BY 1")
        assert [number for (number,) in made] == list(range(1, int(str(version)) + 1))
