"""`pqs workflows` and `pqs dead-letters`: commands that change something."""

import json
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from app.store import dead_letters
from app.store.database import Connection, Database
from app.store.dead_letters import Letter
from tests.cli.conftest import ACTIVE, AWAITING, EVIL, Ask
from tests.making import event_json, node
from tests.processes import COMMAND, PATIENCE, Service, environment

pytestmark = pytest.mark.usefixtures("anyio_backend")

FIRST = msgspec.json.encode(event_json("registration.initiated", 1, entity_id=node(9)))
CONFLICT = msgspec.json.encode(event_json("registration.accepted", 1, entity_id=AWAITING))  # it is on another track


@pytest.fixture
async def letters(module_database_url: str) -> AsyncIterator[list[int]]:
    """The ids of three dead letters: one that applies, one that conflicts, and one that nobody can read."""
    database = Database(module_database_url, pool_size=1, statement_timeout=timedelta(seconds=5))
    made = [
        Letter(topic="nodes", partition=3, offset=offset, key=b"k", value=value, headers=[], error=f"bad {EVIL}")
        for offset, value in enumerate((FIRST, CONFLICT, b"\xff"))
    ]
    await database.write(lambda connection: dead_letters.add(connection, made))
    page, _ = await database.read(lambda connection: dead_letters.get_page(connection, after=0, limit=1000))
    yield [letter.id for letter in page][-3:]

    async def clear(connection: Connection) -> None:
        for letter in page:
            await dead_letters.remove(connection, letter.id)

    await database.write(clear)
    await database.close()


# --- Workflows -----------------------------------------------------------------------------------------------------


def put(service: Service, state: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`pqs workflows put` of a state on standard input."""
    return subprocess.run(
        [*COMMAND, "workflows", "put", "deploy/eu", "-", *map(str, arguments)],
        input=state,
        env=environment(url=service.url),
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )


def test_a_commit_names_what_it_builds_on(service: Service, ask: Ask) -> None:
    """A new workflow, the next version, and status 4 for a commit that was late."""
    assert put(service, '{"step": 1}', "--create").returncode == 0
    second = put(service, '{"step": 9007199254740993}', "--if-version", 1, "-o", "json")
    assert json.loads(second.stdout)["version"] == 2
    late = put(service, '{"step": 3}', "--if-version", 1)
    assert (late.returncode, late.stdout) == (4, "")
    assert late.stderr.startswith("pqs: 412 ")
    assert put(service, '{"step": 3}', "--create").returncode == 4
    row = ask("workflows", "get", "deploy/eu").stdout
    assert '{"step":9007199254740993}' in row
    assert "deploy/eu" in ask("workflows", "list", "-o", "name").stdout.split()
    assert ask("workflows", "get", "nothing").returncode == 3


@pytest.mark.parametrize("state", ["[1]", "{", '{"x": NaN}'])
def test_a_state_that_is_no_object_is_2(service: Service, state: str) -> None:
    """It is refused before it is sent."""
    run = put(service, state, "--create")
    assert (run.returncode, run.stdout) == (2, "")


def test_an_action_is_applied_once(service: Service, ask: Ask, tmp_path: Path) -> None:
    """The same action again changes nothing, and gets the same row; with another state the status is 4."""
    file = tmp_path / "state.json"
    file.write_text('{"a": 1}')
    command = ("workflows", "put", "once", file, "--create", "--action", "a1", "-o", "json", "--provenance")
    stamp = '{"timestamp": "2026-01-01T00:00:00Z", "by": "me"}'
    first, again = ask(*command, stamp), ask(*command, stamp)
    assert first.returncode == again.returncode == 0
    assert first.stdout == again.stdout
    assert json.loads(first.stdout)["provenance"]["by"] == "me"
    file.write_text('{"a": 2}')
    assert ask(*command, stamp).returncode == 4


# --- Dead letters --------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_shown(ask: Ask, letters: list[int]) -> None:
    """The list has the errors, escaped; a letter has its message too."""
    listed = ask("dead-letters", "list").stdout
    assert listed.count(r"bad e\x1b[31mvil\x9b\u202e") == 3
    shown = ask("dead-letters", "show", letters[0]).stdout
    assert f"value      {FIRST.decode()}\n" in shown
    assert json.loads(ask("dead-letters", "show", letters[0], "-o", "json").stdout)["value"] == FIRST.decode()
    assert ask("dead-letters", "show", 10**9).returncode == 3


def test_a_retry_has_a_line_for_each_letter(ask: Ask, letters: list[int]) -> None:
    """What applied is gone; the status is that of the first one that failed, and the others are tried."""
    first, conflict, unreadable = letters
    run = ask("dead-letters", "retry", conflict, first, unreadable)
    assert run.returncode == 4
    assert run.stdout == f"{first}  applied\n"
    assert [line.split()[:2] for line in run.stderr.splitlines()] == [
        [str(conflict), "409"],
        [str(unreadable), "400"],
    ]
    assert ask("dead-letters", "list", "-o", "name").stdout.split() == [str(conflict), str(unreadable)]


def test_a_removal_is_asked_for(ask: Ask, service: Service, letters: list[int]) -> None:
    """Without a yes nothing is removed; --yes is for scripts."""
    refused = subprocess.run(
        [*COMMAND, "dead-letters", "delete", str(letters[0])],
        stdin=subprocess.DEVNULL,
        env=environment(url=service.url),
        capture_output=True,
        check=False,
        text=True,
        timeout=PATIENCE,
    )
    assert (refused.returncode, refused.stdout) == (1, "")
    run = ask("dead-letters", "delete", letters[0], "--yes")
    assert (run.returncode, run.stdout) == (0, f"{letters[0]}  deleted\n")
    assert ask("dead-letters", "delete", letters[0], "--yes").returncode == 3


def test_calls_of_several_letters_as_curl(ask: Ask, letters: list[int]) -> None:
    """A line for each, and nothing is done."""
    lines = ask("dead-letters", "delete", *letters, "--curl").stdout.splitlines()
    assert [line.split("-X ")[1].split("/")[0] for line in lines] == ["DELETE http:"] * 3
    assert len(ask("dead-letters", "list", "-o", "name").stdout.split()) == 3


# --- The feed ------------------------------------------------------------------------------------------------------


def test_a_feed_goes_on_at_a_token(ask: Ask) -> None:
    """The token of a line is the place after it."""
    first = json.loads(ask("watch", "--after", "start", "--limit", 1, "-o", "json").stdout)
    assert (first["kind"], first["version"]) == ("change", 1)
    second = json.loads(ask("watch", "--after", first["next"], "--limit", 1, "-o", "ndjson").stdout)
    assert second["id"] > first["id"]


def test_a_feed_is_filtered(ask: Ask) -> None:
    """By entity and event; a change has the state before and after."""
    run = ask("watch", "--after", "start", "--id", ACTIVE, "--event", "registration.activated", "--limit", 1)
    head, line = run.stdout.splitlines()
    assert head.split() == ["TIME", "ID", "BEFORE", "STATE", "EVENT", "TYPE", "VERSION"]
    assert line.split()[1:] == [str(ACTIVE), "ack_received", "active", "registration.activated", "compute", "5"]


def test_a_snapshot_begins_with_rows(ask: Ask) -> None:
    """A row has no event."""
    run = ask("watch", "--snapshot", "--state", "awaiting_ack", "--limit", 1)
    assert run.stdout.splitlines()[1].split()[1:] == [str(AWAITING), "-", "awaiting_ack", "-", "compute", "3"]


def test_a_damaged_token_is_refused(ask: Ask) -> None:
    """The service says why."""
    run = ask("watch", "--after", "nonsense")
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("pqs: 400 ")


# --- Waiting and forgetting ----------------------------------------------------------------------------------------


def test_a_wait_ends_when_the_state_is_there(service: Service, ask: Ask) -> None:
    """The entity is printed; a state that it is not in is waited for, and then the status is 6."""
    there = ask("wait", ACTIVE, "--for", "active")
    assert (there.returncode, there.stdout.splitlines()[1].split()) == (0, ["state", "active"])
    passed = ask("wait", ACTIVE, "--for", "awaiting_ack", "--after-version", 1)
    assert passed.stderr == "pqs: it was in that state at version 3\n"
    late = ask("wait", ACTIVE, "--for", "rejected", "--timeout", 0.5)
    assert (late.returncode, late.stdout) == (6, "")
    still = ask("wait", ACTIVE, "--after-version", 5, "--timeout", 0.5)
    assert (still.returncode, still.stderr) == (6, "pqs: the entity is still at version 5\n")
    soon = node(20)
    with subprocess.Popen(
        [*COMMAND, "wait", str(soon), "-o", "name"], env=environment(url=service.url), stdout=subprocess.PIPE
    ) as process:
        with service.client() as client:
            client.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=soon))
        printed, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, printed.decode()) == (0, f"{soon}\n")


def test_a_forgotten_entity_is_gone(service: Service, ask: Ask) -> None:
    """It is asked for; then reads end with status 3. A wrong version is status 4, and changes nothing."""
    gone = node(21)
    with service.client() as client:
        client.post("/v1/events", json=event_json("registration.initiated", 1, entity_id=gone))
    assert ask("forget", gone, "--yes", "--if-version", 7).returncode == 4
    assert ask("get", gone).returncode == 0
    run = ask("forget", gone, "--yes", "--reason", "a test", "--erase")
    assert run.returncode == 0
    assert "erased changes       1\n" in run.stdout
    assert ask("get", gone).returncode == 3
    assert ask("forget", node(22), "--yes").returncode == 3
    assert ask("forget", node(22), "--yes", "--permanent", "--sequence", 4).returncode == 0
    assert ask("forget", node(22), "--yes", "--sequence", 4, "--offset", 4).returncode == 2
