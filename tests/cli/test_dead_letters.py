"""`pqs dead-letters` by filters, in bulk, and `pqs dead-letters entities`."""

import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from app.store.database import Database
from tests.cli.conftest import Ask
from tests.inbound.test_holding import EMPTY, Log, heartbeat, poisoned
from tests.making import event_json, life, node

pytestmark = pytest.mark.usefixtures("anyio_backend")

HELD, OTHER = node(11), node(12)


@pytest.fixture
async def log(module_database_url: str) -> AsyncIterator[Log]:
    """Two nodes that are held, each behind a poisoned second step, and a heartbeat of another topic that failed."""
    database = Database(module_database_url, pool_size=1, statement_timeout=timedelta(seconds=5))
    log = Log(database)
    for each in (HELD, OTHER):
        first, second, *others = life(each)
        await log.take(first, poisoned(second), *others)
    await log.take(poisoned(event_json("node.heartbeat", 9, entity_id=node(13))), topic="racks")
    yield log
    await log.execute(EMPTY)
    await database.close()


def listed(ask: Ask, *options: object) -> list[int]:
    """The ids that a list has."""
    return [int(each) for each in ask("dead-letters", "list", "-o", "name", *options).stdout.split()]


async def test_a_list_takes_filters(ask: Ask, log: Log) -> None:
    """Each narrows it, and the order may be turned around."""
    first, second, third = ids = listed(ask)
    assert listed(ask, "--newest-first") == ids[::-1]
    assert listed(ask, "--topic", "racks") == [third]
    assert listed(ask, "--entity", HELD) == [first]
    assert listed(ask, "--error", "color", "--topic", "nodes") == [first, second]
    assert listed(ask, "--source", "relay") == listed(ask, "--since", "2999-01-01T00:00:00Z") == []
    assert ask("dead-letters", "list", "--since", "now").returncode == 2
    assert "newest" not in ask("dead-letters", "list", "--limit", 1, "-o", "json").stdout
    assert await log.number("dead_letters") == 3


@pytest.mark.parametrize("command", ["retry", "delete"])
@pytest.mark.parametrize(
    "arguments", [[], ["1", "--all"], ["--topic", "nodes"], ["1", "--topic", "nodes"]], ids=" ".join
)
def test_letters_are_chosen_by_id_or_with_all(ask: Ask, command: str, arguments: list[str]) -> None:
    """A filter alone does not say that all are meant, and both is a mistake: status 2, and nothing is sent."""
    run = ask("dead-letters", command, *arguments)
    assert (run.returncode, run.stdout) == (2, "")
    assert "--all" in run.stderr


async def test_all_that_match_are_retried(ask: Ask, log: Log) -> None:
    """The numbers at the end; status 1 as long as any fails."""
    failed = ask("dead-letters", "retry", "--all", "--topic", "nodes")
    assert (failed.returncode, failed.stdout) == (1, "0 done, 2 failed\n")
    assert failed.stderr == "pqs: 2 match; the service goes on even if this command ends\n"
    await log.mend()
    run = ask("dead-letters", "retry", "--all", "--error", "color", "--topic", "nodes")
    assert (run.returncode, run.stdout) == (0, "2 done, 0 failed\n")
    assert (await log.versions())[HELD] == 5
    assert len(listed(ask)) == 1


async def test_all_that_match_are_removed(ask: Ask, log: Log) -> None:
    """A letter that messages wait behind stays, and counts as failed. It asks first."""
    refused = ask("dead-letters", "delete", "--all", "--topic", "racks")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Remove all that match for good?" in refused.stderr
    run = ask("dead-letters", "delete", "--all", "--yes")
    assert (run.returncode, run.stdout) == (1, "1 done, 2 failed\n")
    assert await log.number("held_messages") == 6


def test_bulk_calls_as_curl(ask: Ask) -> None:
    """One line, without a question."""
    run = ask("dead-letters", "delete", "--all", "--topic", "nodes", "--curl")
    assert run.stdout.startswith("curl ")
    assert "/v1/dead-letters/delete?topic=nodes" in run.stdout


async def test_held_entities_are_listed_and_shown(ask: Ask, log: Log) -> None:
    """Each has its letter, its error, and the number of messages that wait."""
    found = ask("dead-letters", "entities", "list", "-o", "name").stdout.split()
    assert found == sorted(map(str, (HELD, OTHER)))
    shown = ask("dead-letters", "entities", "show", HELD).stdout
    assert re.search(r"^waiting +3$", shown, re.MULTILINE)
    assert "color" in shown
    as_json = json.loads(ask("dead-letters", "entities", "show", HELD, "-o", "json").stdout)
    assert (as_json["messages"], as_json["letter_id"] in listed(ask)) == (3, True)
    assert ask("dead-letters", "entities", "show", node(99)).returncode == 3
    assert await log.number("held_entities") == 2


async def test_queues_are_retried(ask: Ask, log: Log) -> None:
    """A line for each; the status is that of the first one that failed."""
    failed = ask("dead-letters", "entities", "retry", HELD, node(99))
    assert (failed.returncode, failed.stdout) == (4, "")
    assert [line.split()[:2] for line in failed.stderr.splitlines()] == [[str(HELD), "409"], [str(node(99)), "404"]]
    assert "fails again" in failed.stderr
    await log.mend()
    run = ask("dead-letters", "entities", "retry", HELD, OTHER)
    assert (run.returncode, run.stdout) == (0, f"{HELD}  4 applied\n{OTHER}  4 applied\n")
    assert ask("dead-letters", "entities", "list", "-o", "name").stdout == ""


async def test_a_message_of_a_queue_is_skipped(ask: Ask, log: Log) -> None:
    """It asks first; what was left out and what still waits is told."""
    await log.take(poisoned(life(HELD)[1]), heartbeat(11, 9))
    refused = ask("dead-letters", "entities", "skip", HELD)
    assert (refused.returncode, refused.stdout) == (1, "")
    run = ask("dead-letters", "entities", "skip", HELD, "--yes")
    assert (run.returncode, run.stdout) == (0, f"{HELD}  3 ignored, left out nodes-0 offset 1, 2 still wait\n")
    run = ask("dead-letters", "entities", "skip", HELD, "--yes")
    assert (run.returncode, run.stdout) == (0, f"{HELD}  1 applied, left out nodes-0 offset 11\n")
