"""`pqs keys` and `pqs audit`, run as commands."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from app.access.keys import AccessKey
from app.cli import pqs as commands
from app.cli.keys import audit, keys
from app.store import keys as stored_keys
from app.store.database import Database
from app.store.keys import StoredKey

# No coroutines: each command has an event loop of its own.
READER = ("--scope", "entities:read", "--domain", "registration")


class Typing:
    """Runs commands on one database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, *words: str) -> Result:
        """The result of a command."""
        return CliRunner().invoke(commands, [*words, f"--database-url={self.url}"])

    def done(self, *words: str) -> str:
        """The output of a command that succeeded."""
        run = self(*words)
        assert run.exit_code == 0, run.output
        return run.stdout

    def lines(self, *words: str) -> list[dict[str, Any]]:
        """The JSON lines that a command printed."""
        return [json.loads(line) for line in self.done(*words, "-o", "ndjson").splitlines()]

    def stored(self) -> list[StoredKey]:
        """The keys in the database."""

        async def read() -> list[StoredKey]:
            database = Database(self.url, pool_size=1, statement_timeout=timedelta(seconds=5))
            try:
                return await database.read(stored_keys.get_all)
            finally:
                await database.close()

        return asyncio.run(read())

    def lets_in(self, key: str) -> bool:
        """Whether a key is live."""

        async def read() -> bool:
            database = Database(self.url, pool_size=1, statement_timeout=timedelta(seconds=5))
            try:
                return AccessKey(key).digest in (await database.read(stored_keys.get_live)).by_digest
            finally:
                await database.close()

        return asyncio.run(read())


@pytest.fixture
def pqs(database_url: str) -> Typing:
    """Commands on a database of their own."""
    return Typing(database_url)


pytestmark = pytest.mark.usefixtures("anyio_backend")


def test_a_key_is_made_and_shown_once(pqs: Typing) -> None:
    """Only the key is on standard output; the database has the requested rights, and not the secret."""
    run = pqs(
        "keys", "create", "orchestrator", "--scope", "events:write", "--scope", "workflows:read", "--domain", "a",
        "--domain", "b", "--workflow-prefix", "team/", "--expires", "30d", "--rate", "100", "--burst", "300",
    )  # fmt: skip
    assert run.exit_code == 0
    key = AccessKey(run.stdout.strip())
    assert run.stdout == key.text + "\n"
    assert re.fullmatch(rf"orchestrator/{key.id} lives until .*Z; it is shown only once\n", run.stderr)
    [stored] = pqs.stored()
    assert (stored.id, stored.name, stored.scopes) == (key.id, "orchestrator", ("events:write", "workflows:read"))
    assert (stored.domains, stored.workflow_prefixes) == (("a", "b"), ("team/",))
    assert (stored.rate, stored.burst) == (100, 300)
    assert abs(stored.expires_at - datetime.now(UTC) - timedelta(days=30)) < timedelta(minutes=2)
    assert stored.created_by.startswith("cli:")
    assert pqs.lets_in(key.text)
    for said in (pqs.done("keys", "list"), pqs.done("audit"), repr(stored)):
        assert key.text[15:58] not in said
        assert key.id in said


def test_a_key_lives_90_days_unless_told_otherwise(pqs: Typing) -> None:
    """By default a key lives 90 days; `*` covers every domain and every workflow."""
    pqs.done("keys", "create", "k", "--scope", "operations:read", "--scope", "workflows:write", "--domain", "*",
             "--workflow-prefix", "*")  # fmt: skip
    [stored] = pqs.stored()
    assert abs(stored.expires_at - datetime.now(UTC) - timedelta(days=90)) < timedelta(minutes=2)
    assert (stored.domains, stored.workflow_prefixes) == (("*",), ("",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("k",), "--scope"),
        (("k", "--scope", "entities:write", "--domain", "a"), "'entities:write' is not one of"),
        (("k", "--scope", "entities:read"), "need a --domain"),
        (("k", "--scope", "events:write", "--domain", ""), "1 to 128 printable characters"),
        (("k", "--scope", "operations:read", "--domain", "a"), "they need --domain '*'"),
        (("k", "--scope", "workflows:read"), "need a --workflow-prefix"),
        (("k k", *READER), "a name has 1 to 128"),
        (("k/1", *READER), "a name has 1 to 128"),
        (("k", *READER, "--expires", "soon"), "is not a duration such as 30d"),
        (("k", *READER, "--expires", "3651d"), "of ten years at most"),
        (("k", *READER, "--expires", "0d"), "is not a duration"),
        (("k", *READER, "--rate", "0"), "--rate"),
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_refused(pqs: Typing, words: tuple[str, ...], said: str) -> None:
    """Contradictory or invalid options are refused before anything is written."""
    run = pqs("keys", "create", *words)
    assert run.exit_code == 2
    assert said in run.output
    assert pqs.stored() == []


def test_a_rotation_is_two_live_keys(pqs: Typing) -> None:
    """The new key has the same rights; the old one ends after the overlap; a third one is refused."""
    old = pqs.done("keys", "create", "k", *READER, "--rate", "5").strip()
    assert pqs("keys", "create", "k", *READER).output == (
        "pqs: there is a live key k; `pqs keys rotate k` creates its successor\n"
    )
    new = pqs.done("keys", "rotate", "k", "--overlap", "2h", "--expires", "10d").strip()
    first, second = pqs.stored()
    assert [first.id, second.id] == [AccessKey(old).id, AccessKey(new).id]
    assert (first.scopes, first.domains, first.rate) == (second.scopes, second.domains, second.rate)
    now = datetime.now(UTC)
    assert abs(first.expires_at - now - timedelta(hours=2)) < timedelta(minutes=2)
    assert abs(second.expires_at - now - timedelta(days=10)) < timedelta(minutes=2)
    assert pqs.lets_in(old)
    assert pqs.lets_in(new)
    assert pqs("keys", "rotate", "k").output == (
        f"pqs: k has two live keys: first revoke one of {first.id}, {second.id}\n"
    )
    pqs.done("keys", "revoke", first.id)
    assert [pqs.lets_in(old), pqs.lets_in(new)] == [False, True]
    pqs.done("keys", "rotate", "k")


def test_a_key_is_revoked_by_its_name(pqs: Typing) -> None:
    """Revoking ends all live keys of the name; a name without a live key is an error."""
    one = pqs.done("keys", "create", "k", *READER).strip()
    two = pqs.done("keys", "rotate", "k").strip()
    other = pqs.done("keys", "create", "other", *READER).strip()
    assert set(pqs.done("keys", "revoke", "k").splitlines()) == {
        f"revoked k/{AccessKey(text).id}" for text in (one, two)
    }
    assert [pqs.lets_in(text) for text in (one, two, other)] == [False, False, True]
    run = pqs("keys", "revoke", "k")
    assert (run.exit_code, run.output) == (1, "pqs: there is no live key k; `pqs keys list` lists them\n")
    assert pqs("keys", "rotate", "k").exit_code == 1
    pqs.done("keys", "create", "k", *READER)


def test_keys_are_listed(pqs: Typing) -> None:
    """The list has the live keys, or all, as a table or as JSON lines."""
    pqs.done("keys", "create", "gone", *READER)
    pqs.done("keys", "revoke", "gone")
    pqs.done("keys", "create", "here", *READER)
    header, line = pqs.done("keys", "list").splitlines()
    assert header.split()[:4] == ["id", "name", "state", "scopes"]
    assert line.split()[1:6] == ["here", "live", "entities:read", "registration", "-"]
    assert [(each["name"], each["revoked_at"] is None) for each in pqs.lines("keys", "list", "--all")] == [
        ("gone", False),
        ("here", True),
    ]
    assert "digest" not in pqs.done("keys", "list", "--all", "-o", "ndjson")


def test_every_change_is_in_the_audit_log(pqs: Typing) -> None:
    """The audit log has every change, newest first, in pages, and no refused change."""
    key = AccessKey(pqs.done("keys", "create", "k", *READER).strip())
    pqs("keys", "create", "k", *READER)
    successor = AccessKey(pqs.done("keys", "rotate", "k").strip())
    pqs.done("keys", "revoke", successor.id)
    found = pqs.lines("audit")
    assert [(each["action"], each["target"], each["outcome"]) for each in found] == [
        ("keys.revoke", f"k/{successor.id}", "done"),
        ("keys.rotate", f"k/{key.id} by {successor.id}", "done"),
        ("keys.create", f"k/{key.id}", "done"),
    ]
    assert all(each["principal"].startswith("cli:") for each in found)
    assert [each["id"] for each in pqs.lines("audit", "--limit", "1", "--before", str(found[0]["id"]))] == [
        found[1]["id"]
    ]
    assert len(pqs.done("audit").splitlines()) == 4


def test_quotas_are_set_and_ended(pqs: Typing) -> None:
    """Quotas are set, removed, and listed with their use."""
    assert pqs.done("keys", "quota").split() == ["prefix", "used", "quota"]
    assert pqs.done("keys", "quota", "team/", "1000").splitlines()[1].split() == ["team/", "0", "1000"]
    assert pqs.done("keys", "quota", "*", "5000").splitlines()[1].split() == ["*", "0", "5000"]
    assert len(pqs.done("keys", "quota", "team/", "none").splitlines()) == 2
    assert pqs("keys", "quota", "team/", "none").output == "pqs: there is no quota for the prefix team/\n"
    for wrong in (("team/",), ("team/", "-1"), ("team/", "much")):
        assert pqs("keys", "quota", *wrong).exit_code == 2
    assert [each["target"] for each in pqs.lines("audit")] == ["team/: none", "*: 5000", "team/: 1000"]


@pytest.mark.parametrize("command", [*keys.commands.values(), audit], ids=lambda command: str(command.name))
def test_every_command_and_option_has_help(command: click.Command) -> None:
    """Each command and option has a help text."""
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_a_secret_on_the_command_line_is_warned_of() -> None:
    """A secret on the command line causes a warning that names the setting to use and does not show the secret."""
    run = CliRunner().invoke(commands, ["audit", "--database-url=postgresql://u:hunter2@127.0.0.1:1/nowhere"])
    assert run.exit_code == 1
    assert "--database-url shows a secret to everybody on this machine; set PQS_DATABASE_URL_FILE" in run.stderr
    assert "hunter2" not in run.output
