"""The `pqs` command as a process: its output, its refusals, and its effect on a database."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import click
import httpx
import pytest
from click.testing import CliRunner

from app.cli import COMMANDS
from app.cli import pqs as commands
from app.cli.operators import operator
from app.embedded.postgres import running_url
from app.embedded.wheel import binary
from app.settings import Settings
from app.store.schema import HEAD, REVISIONS
from tests.making import NODE, event_json, node
from tests.processes import COMMAND, environment, pqs, refusal, serving, until

# Most of these tests are no coroutines, and use a database of their own.
pytestmark = pytest.mark.usefixtures("anyio_backend")

PASSWORD = "hunter2"
NOWHERE = f"postgresql://postgres:{PASSWORD}@127.0.0.1:1/nowhere"  # nothing listens there
# Gives up root's right to write anywhere, and becomes another program.
WITHOUT_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0:
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
    assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def psql(url: str, statement: str) -> str:
    """The output of the wheel's psql."""
    command = [str(binary("psql")), "--no-psqlrc", "-At", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def options(command: click.Command) -> list[click.Option]:
    """The options of a command."""
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


# --- Help ----------------------------------------------------------------------------------------------------------


def test_alone_it_shows_what_there_is() -> None:
    """`pqs` without arguments names every command."""
    run = pqs()
    assert "Traceback" not in run.stderr
    for name in ("serve", "migrate", "load", "rebase", "db-url", "intents", "openapi"):
        assert f"\n  {name} " in run.stdout + run.stderr


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_has_help(name: str) -> None:
    """Each command and each of its options has a help text."""
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    assert command.help
    for option in options(command):
        assert option.help, option.name
    run = CliRunner().invoke(commands, [name, "--help"])
    assert run.exit_code == 0
    assert all(option.opts[0] in run.output for option in options(command))


@pytest.mark.parametrize("name", Settings.model_fields)
def test_help_of_serve_lists_every_setting(name: str) -> None:
    """Each setting is listed as an option and as a variable, with its default."""
    run = CliRunner().invoke(commands, ["serve", "--help"], terminal_width=500)
    whole = re.sub(r"\n {6,}", "  ", run.output)  # after a long name the text has a line of its own
    [line] = [line for line in whole.splitlines() if line.startswith(f"  --{name.replace('_', '-')} ")]
    assert line.endswith(f" Also PQS_{name.upper()}.")
    default = Settings.model_fields[name].default
    assert isinstance(default, str | int | float) == ("Default: " in line)


# --- What can't start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("prot", "8000", "pqs: there is no setting PQS_PROT; did you mean PQS_PORT?"),
        ("port", "65536", "pqs: PQS_PORT: Input should be less than or equal to 65535"),
    ],
)
def test_wrong_setting_stops_the_start(name: str, value: str, said: str, tmp_path: Path) -> None:
    """An unknown or wrong setting stops the start with status 1 and one line that names it."""
    line = refusal(pqs("serve", **{"data_dir": tmp_path / "data", name: value}))
    assert line.startswith(said)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_port_in_use(shared: bool, workers: int, tmp_path: Path) -> None:
    """A used port is reported at once, before PostgreSQL is started, even if the port may be shared."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=shared) as taken:
        port = taken.getsockname()[1]
        line = refusal(pqs("serve", port=port, workers=workers, data_dir=tmp_path / "data"))
    assert line == (
        f"pqs: cannot listen on 127.0.0.1 port {port}: it is already in use; choose another with --host and --port"
    )
    assert not (tmp_path / "data").exists()


def test_data_of_another_version(tmp_path: Path) -> None:
    """A data directory of another PostgreSQL version is refused with both versions."""
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    line = refusal(pqs("serve", port=0, data_dir=tmp_path))
    assert f"{tmp_path}/postgres was made by PostgreSQL 15, but PostgreSQL 18 is installed" in line


def test_no_write_permission(data_dir: Path) -> None:
    """A data directory that is not writable is refused with the path and the reason."""
    data_dir.chmod(0o555)
    command = [sys.executable, "-c", WITHOUT_RIGHTS, *COMMAND, "serve"]
    run = subprocess.run(
        command,
        env=environment(port=0, data_dir=data_dir),
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    data_dir.chmod(0o755)
    line = refusal(run)
    assert f"{data_dir}/service.lock: Permission denied" in line
    assert "PQS_DATA_DIR" in line


# --- Beside a running service --------------------------------------------------------------------------------------


def test_commands_beside_a_running_service(data_dir: Path, tmp_path: Path) -> None:
    """`db-url` and `migrate` use the running service's PostgreSQL; a second service on it is refused."""
    with serving(tmp_path, data_dir=data_dir) as service:
        run = pqs("db-url", data_dir=data_dir)
        assert (run.returncode, run.stderr) == (0, "")
        assert psql(run.stdout.strip(), "SELECT version_num FROM alembic_version") == HEAD
        assert pqs("migrate", data_dir=data_dir).stdout == f"the schema is already at {HEAD}\n"
        line = refusal(pqs("serve", port=0, data_dir=data_dir))
        assert line.startswith(f"pqs: {data_dir} is in use by process {service.pid}; stop it, or set PQS_DATA_DIR")
        assert httpx.get(f"{service.url}/readyz").status_code == 200


async def test_openapi_is_the_live_document(client: httpx.AsyncClient) -> None:
    """`pqs openapi` prints the document that a service serves, without needing one."""
    run = pqs("openapi")
    assert run.returncode == 0
    assert json.loads(run.stdout) == (await client.get("/openapi.json")).json()


def test_db_url_without_a_service(tmp_path: Path) -> None:
    """Without a running service, `db-url` reports that there is no address."""
    run = CliRunner().invoke(commands, ["db-url", "--data-dir", str(tmp_path)])
    assert run.exit_code == 1
    assert run.stderr == f"pqs: no PostgreSQL runs in {tmp_path} now; `pqs serve` starts it\n"
    assert list(tmp_path.iterdir()) == []


def test_db_url_of_an_external_database() -> None:
    """`db-url` prints the address of a configured database."""
    run = CliRunner().invoke(commands, ["db-url", "--database-url", "postgresql+asyncpg://u:p@h/n"])
    assert run.output == "postgresql://u:p@h/n\n"


# --- An external database and its schema ---------------------------------------------------------------------------


def test_database_behind_and_ahead(empty_database_url: str, tmp_path: Path) -> None:
    """On a database of another revision the service starts, says why it is not ready, and changes nothing in it."""
    with serving(tmp_path, database_url=empty_database_url) as service, service.client() as client:
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["detail"] == (
            f"the database has no schema; missing: {', '.join(REVISIONS)}; run `pqs migrate`"
        )
        refused = client.post("/v1/events", json=event_json("registration.initiated", 1))
        assert refused.status_code == 503
        assert psql(empty_database_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"

        assert pqs("migrate", database_url=empty_database_url).stdout == f"the schema moved from base to {HEAD}\n"
        until(lambda: client.get("/readyz").json() == {"status": "ready", "revision": HEAD}, "it is ready")

        psql(empty_database_url, "UPDATE alembic_version SET version_num = '9999'")
        until(lambda: client.get("/readyz").status_code == 503, "it notices the other revision")
        answer = client.get("/readyz")
        assert "is at revision 9999, which this code does not know" in answer.json()["detail"]
        line = refusal(pqs("migrate", database_url=empty_database_url))
        assert line == "pqs: the database is at revision 9999, which this code does not know; nothing done"


@pytest.fixture
def role(empty_database_url: str) -> Iterator[str]:
    """The address of the empty database for a role without any right in it."""
    name = f"role_{uuid4().hex}"
    psql(empty_database_url, f"CREATE ROLE {name} LOGIN")
    yield empty_database_url.replace("postgres@", f"{name}@", 1)
    psql(empty_database_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_role_without_rights(role: str, empty_database_url: str, tmp_path: Path) -> None:
    """A role that may not create or write tables is reported by `pqs migrate`, `readyz` and every call."""
    line = refusal(pqs("migrate", database_url=role))
    assert "permission denied for schema public" in line
    pqs("migrate", database_url=empty_database_url)
    name = role.partition("//")[2].partition("@")[0]
    event = event_json("registration.initiated", 1)
    with serving(tmp_path, database_url=role) as service, service.client() as client:
        assert client.get("/readyz").status_code == 503
        assert client.get("/v1/state-counts").status_code == 503
        psql(empty_database_url, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
        until(lambda: "INSERT" in client.get("/readyz").json()["detail"], "it notices the new rights")
        lacking = client.get("/readyz").json()["detail"]
        assert "INSERT on registration_projections" in lacking
        deletes = {right.partition(" on ")[2] for right in lacking.split(", ") if "DELETE" in right}
        of_letters = {"dead_letters", "held_entities", "held_messages", "dead_letter_runs"}
        assert (
            deletes == {"workflow_actions", "outbox", "watermarks", "sessions", "the slices of changes"} | of_letters
        )
        refused = client.post("/v1/events", json=event)
        assert (refused.status_code, "lacks a right" in refused.json()["detail"]) == (503, True)
        stream = client.post(
            "/v1/events", content=json.dumps(event), headers={"Content-Type": "application/x-ndjson"}
        )
        assert (stream.status_code, stream.json()["committed_lines"]) == (503, 0)
        psql(empty_database_url, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
        until(lambda: "USAGE on changes_id_seq" in client.get("/readyz").json()["detail"], "it notices them again")
        psql(empty_database_url, f"GRANT SELECT, USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
        until(lambda: client.get("/readyz").status_code == 200, "it is ready")
        assert client.post("/v1/events", json=event).json()["outcome"] == "applied"


def test_migration_of_a_foreign_database(empty_database_url: str) -> None:
    """If a table with one of our names exists already, the command reports it in one line."""
    psql(empty_database_url, "CREATE TABLE registration_projections (id int)")
    assert "already exists" in refusal(pqs("migrate", database_url=empty_database_url))


def test_database_down(tmp_path: Path) -> None:
    """Without its database the service is alive and not ready; no command or log line shows the password."""
    with serving(tmp_path, database_url=NOWHERE, log_level="debug") as service, service.client() as client:
        assert client.get("/livez").status_code == 200
        for _ in range(6):  # the last one meets an open breaker
            answer = client.get("/readyz")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert PASSWORD not in answer.text
    assert "does not answer" in service.log
    assert PASSWORD not in service.printed + service.log


@pytest.mark.parametrize("arguments", [["migrate"], ["rebase", str(NODE), "--sequence", "1"]])
def test_command_on_a_database_that_is_down(arguments: list[str]) -> None:
    """A command reports a database that does not answer, without a traceback and without the password."""
    run = pqs(*arguments, database_url=NOWHERE)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "pqs: the database does not answer"
    assert "Traceback" not in run.stderr
    assert PASSWORD not in run.stderr + run.stdout


def test_migrate_up_and_down(empty_database_url: str) -> None:
    """Two migrations at once succeed, a third does nothing; `--to base` drops all tables, and up works again."""
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(pqs, "migrate", database_url=empty_database_url) for _ in range(2)]
        said = sorted(run.result().stdout for run in runs)
    assert said == [f"the schema is already at {HEAD}\n", f"the schema moved from base to {HEAD}\n"]
    down = pqs("migrate", "--to", "base", database_url=empty_database_url)
    assert down.stdout == f"the schema moved from {HEAD} to base\n"
    tables = "SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'public'"
    assert psql(empty_database_url, tables) in {"", "alembic_version"}
    up = pqs("migrate", "--to", HEAD, database_url=empty_database_url)
    assert up.stdout == f"the schema moved from base to {HEAD}\n"
    [act] = audited(empty_database_url)
    assert (act["action"], act["target"], act["outcome"]) == ("migrate", f"from base to {HEAD}", "done")
    assert pqs("migrate", database_url=empty_database_url).returncode == 0
    assert audited(empty_database_url) == [act]


def audited(url: str) -> list[dict[str, object]]:
    """The audit log as an operator reads it, newest first; each entry names the user who runs these tests."""
    run = pqs("audit", "-o", "ndjson", database_url=url)
    assert run.returncode == 0, run.stderr
    acts = [json.loads(line) for line in run.stdout.splitlines()]
    assert {act["principal"] for act in acts} <= {operator()}
    return acts


# --- rebase --------------------------------------------------------------------------------------------------------


def test_rebase_both_ways(database_url: str, tmp_path: Path) -> None:
    """Beside a running service an entity moves to a partition and back, and events of each track apply."""
    offset = {"partition": "topic-3", "offset": 41}
    with serving(tmp_path, database_url=database_url) as service, service.client() as client:

        def post(type_: str, **position: object) -> str:
            number = int(str(position.get("sequence") or position.get("offset")))
            outcome = client.post("/v1/events", json=event_json(type_, number, position=position)).json()["outcome"]
            return str(outcome)

        assert post("registration.initiated", sequence=7) == "applied"
        before = client.get(f"/v1/entities/{NODE}").json()
        assert post("registration.accepted", partition="topic-3", offset=42) == "conflict"

        run = pqs("rebase", NODE, "--partition", "topic-3", "--offset", 41, database_url=database_url)
        assert run.stdout == f"{NODE} moved from sequence 7 to partition topic-3 offset 41, version 2\n"
        assert f"rebased: {NODE}" in run.stderr
        assert client.get(f"/v1/entities/{NODE}").json() == before | {
            "version": 2,
            "last_applied_sequence": None,
            "last_applied_partition": offset["partition"],
            "last_applied_offset": offset["offset"],
        }
        assert post("registration.accepted", partition="topic-3", offset=42) == "applied"

        assert pqs("rebase", NODE, "--sequence", 7, database_url=database_url).returncode == 0
        assert post("registration.ack_received", sequence=8) == "applied"
        row = client.get(f"/v1/entities/{NODE}").json()
        assert (row["current_state"], row["version"], row["last_applied_sequence"]) == ("ack_received", 5, 8)
    assert [(act["action"], act["target"], act["outcome"]) for act in audited(database_url)] == [
        ("rebase", f"registration/{NODE}: from partition topic-3 offset 42 to sequence 7", "done"),
        ("rebase", f"registration/{NODE}: from sequence 7 to partition topic-3 offset 41", "done"),
    ]


def test_rebase_while_no_service_runs(data_dir: Path) -> None:
    """If the service is stopped, `rebase` starts and stops the service's PostgreSQL itself."""
    assert pqs("migrate", data_dir=data_dir).stdout == f"the schema moved from base to {HEAD}\n"
    run = pqs("rebase", NODE, "--sequence", 7, data_dir=data_dir)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == f"pqs: there is no entity {NODE} in domain registration"
    assert running_url(data_dir) is None
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_rebase_of_an_entity_in_a_domain(database_url: str) -> None:
    """`rebase` finds the entity in the domain given."""
    insert = """INSERT INTO registration_projections (entity_id, domain, current_state, node_type, node_version,
        capabilities, last_applied_event_id, last_applied_sequence, registered_at, updated_at, version)
        VALUES ('{}', 'other', 'active', 'compute', '1.0.0', '{{}}', '{}', 7, now(), now(), 1)"""
    psql(database_url, insert.format(NODE, node(1)))
    run = pqs("rebase", NODE, "--sequence", 9, "--domain", "other", database_url=database_url)
    assert run.stdout == f"{NODE} moved from sequence 7 to sequence 9, version 2\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either sequence, or both partition and offset"),
        (["--partition", "p"], "give either sequence, or both partition and offset"),
        (["--offset", "1"], "give either sequence, or both partition and offset"),
        (["--sequence", "1", "--offset", "1"], "give either sequence, or partition and offset, not both"),
        (["--sequence", "1", "--partition", "p", "--offset", "1"], "partition and offset, not both"),
        (["--partition", "", "--offset", "1"], "--partition has 1 to 300 characters"),
        (["--partition", "p" * 301, "--offset", "1"], "--partition has 1 to 300 characters"),
        (["--sequence", "-1"], "-1 is not in the range"),
        (["--sequence", str(2**63)], "is not in the range"),
    ],
)
def test_rebase_to_no_place(arguments: list[str], said: str) -> None:
    """Options that do not give one position on one track are refused before a database is used."""
    run = CliRunner().invoke(commands, ["rebase", str(NODE), *arguments], env={"PQS_DATABASE_URL": NOWHERE})
    assert run.exit_code == 2
    assert said in run.output


@pytest.mark.parametrize("option", ["--partition", "--domain"])
def test_rebase_with_bytes_that_are_no_text(option: str) -> None:
    """A name that is not UTF-8 is refused before a database is used."""
    run = subprocess.run(
        [*COMMAND, "rebase", str(NODE), "--offset", "1", "--partition", "p", option, b"\xff"],
        env=environment(database_url=NOWHERE),
        capture_output=True,
        check=False,
        timeout=30,
    )
    assert run.returncode == 2
    assert b"printable characters in UTF-8" in run.stderr


@pytest.mark.parametrize("arguments", [["rebase", str(NODE), "--sequence", "1"]])
def test_command_where_no_database_is(tmp_path: Path, arguments: list[str]) -> None:
    """A mistyped data directory is reported as empty, and stays empty."""
    line = refusal(pqs(*arguments, data_dir=tmp_path / "mistyped"))
    assert "there is no database in" in line
    assert not (tmp_path / "mistyped").exists()


def test_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    """A directory with foreign files is refused, and nothing is created in it."""
    (tmp_path / "photo.jpg").touch()
    assert "photo.jpg" in refusal(pqs("serve", port=0, data_dir=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_empty_data_directory_is_no_path() -> None:
    """An empty PQS_DATA_DIR does not mean the current directory."""
    assert "PQS_DATA_DIR" in refusal(pqs("serve", port=0, data_dir=""))


def test_rebase_of_no_uuid() -> None:
    """An entity id that is not a UUID is refused."""
    run = CliRunner().invoke(commands, ["rebase", "node-1", "--sequence", "1"])
    assert run.exit_code == 2
    assert "'node-1' is not a valid UUID" in run.output


def test_environment_is_left_alone() -> None:
    """These tests run without settings from this machine's environment."""
    assert not [name for name in os.environ if name.startswith("PQS_")]


# --- intents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "consul"),
    [
        ([], "off       consul (PQS_CONSUL_URL): not set"),
        (["--consul-url", "http://127.0.0.1:8500"], "consul    consul (PQS_CONSUL_URL)"),
    ],
    ids=["without Consul", "with Consul"],
)
def test_intents_shows_who_carries_out_what(options: list[str], consul: str) -> None:
    """`intents` prints each intent with its handler and the handler's requirements, or that it is off."""
    run = CliRunner().invoke(commands, ["intents", *options])
    assert run.exit_code == 0, run.output
    assert run.output.splitlines() == [
        "intent                        handler   needs",
        "postgres.upsert_registration  postgres  database (PQS_DATABASE_URL)",
        "postgres.update_registration  postgres  database (PQS_DATABASE_URL)",
        f"consul.register               {consul}",
        f"consul.activate               {consul}",
        f"consul.deregister             {consul}",
    ]


# --- What help and completion take ---------------------------------------------------------------------------------

MODULES = """
import sys
sys.argv[0] = "pqs"
from app.cli import pqs
try:
    pqs()
except SystemExit:
    pass
print("modules:", *sys.modules)
"""


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--help"], {}),
        ([], {"_PQS_COMPLETE": "bash_source"}),
        ([], {"_PQS_COMPLETE": "bash_complete", "COMP_WORDS": "pqs re", "COMP_CWORD": "1"}),
    ],
    ids=["help", "completion script", "completion of a command"],
)
def test_help_and_completion_import_no_command(arguments: list[str], more: dict[str, str]) -> None:
    """Help and completion import only the command's own package from this project, and little beside click."""

    def imported(*command: str) -> set[str]:
        run = subprocess.run(
            [sys.executable, "-c", *command],
            env=environment() | more,
            capture_output=True,
            check=True,
            text=True,
            timeout=30,
        )
        assert run.stderr == ""
        return set(run.stdout.rpartition("modules: ")[2].split())

    click_alone = imported('import click, sys; print("modules:", *sys.modules)')
    taken = imported(MODULES, *arguments)
    assert {name for name in taken if name.startswith("app")} <= {"app", "app.cli", "app.cli.completion"}
    assert len(taken - click_alone) < 40


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_first_sentence_of_the_commands_help(name: str) -> None:
    """`pqs --help`, which imports no command, shows the first sentence of each command's own help."""
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    assert command.help is not None
    assert " ".join(command.help.partition("\n\n")[0].split()) == COMMANDS[name].summary
    assert command.name == name


def test_unknown_command_is_a_usage_error() -> None:
    """An unknown command ends with status 2."""
    run = CliRunner().invoke(commands, ["sevre"])
    assert run.exit_code == 2
    assert "No such command 'sevre'" in run.output
