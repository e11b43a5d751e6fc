"""How commands find and call the service, and how failures end them."""

import json
import os
import pty
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tests.cli.conftest import ACTIVE, ODD, Ask
from tests.processes import COMMAND, PATIENCE, Service, environment, pqs, serving, until

pytestmark = pytest.mark.usefixtures("anyio_backend")

NOWHERE = "http://127.0.0.1:1"  # nothing listens there
SECRET = "hunter2"


def in_terminal(*arguments: object, **settings: object) -> str:
    """What a command prints on a terminal."""
    ours, its = pty.openpty()
    own = {name: str(value) for name, value in settings.items() if name.isupper()}
    rest = {name: value for name, value in settings.items() if not name.isupper()}
    env = {name: value for name, value in environment(**rest).items() if name not in {"NO_COLOR", "TERM"}}
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], env=env | {"TERM": "xterm"} | own, stdin=its, stdout=its, stderr=its
    ) as process:
        os.close(its)
        printed = b""
        with os.fdopen(ours, "rb", buffering=0) as terminal:
            try:
                while piece := terminal.read(65_536):
                    printed += piece
            except OSError:  # on Linux the other end is closed
                pass
        assert process.wait(PATIENCE) == 0, printed
    return printed.decode()


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


# --- Exit statuses -------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_3(ask: Ask) -> None:
    """The reason is on standard error, and nothing on standard output."""
    unknown = uuid4()
    run = ask("get", unknown)
    assert (run.returncode, run.stdout) == (3, "")
    assert run.stderr == f"pqs: 404 Not Found: there is no entity {unknown} in domain registration\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["get", "not-an-id"],
        ["get", ACTIVE, "--url", "ftp://localhost"],
        ["get", ACTIVE, "--url", f"http://me:{SECRET}@localhost"],
        ["get", ACTIVE, "--token-file", "/nowhere/key"],
        ["list", "--updated-before", "2026-01-01T00:00:00"],
        ["list", "--capabilities", "[]"],
        ["overdue", "both"],
        ["workflows", "put", "key", "-"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:3])),
)
def test_a_wrong_option_is_2(arguments: list[object]) -> None:
    """It is said on standard error, before the service is asked, without a password."""
    run = pqs(*arguments, url=NOWHERE)
    assert (run.returncode, run.stdout) == (2, "")
    assert "Error: " in run.stderr
    assert "Traceback" not in run.stderr
    assert SECRET not in run.stderr.partition("Error: ")[0]


def test_a_service_that_is_away_is_5() -> None:
    """One line says which call failed."""
    run = pqs("counts", "--timeout", 1, url=NOWHERE)
    assert (run.returncode, run.stdout) == (5, "")
    assert run.stderr.startswith(f"pqs: GET {NOWHERE}/v1/state-counts: ")
    assert run.stderr.count("\n") == 1


def test_a_service_that_is_not_ready_is_5(empty_database_url: str, tmp_path: Path) -> None:
    """`pqs status` says what is missing, in its table."""
    with serving(tmp_path, database_url=empty_database_url) as service:
        run = pqs("status", url=service.url)
    assert run.returncode == 5
    assert "not ready" in run.stdout
    assert "run `pqs migrate`" in run.stdout


def test_no_answer_in_time_is_6(silent: str) -> None:
    """The time is the one that was given."""
    run = pqs("counts", "--timeout", 0.5, url=silent)
    assert (run.returncode, run.stdout) == (6, "")
    assert run.stderr.startswith(f"pqs: GET {silent}/v1/state-counts: ")


def test_ctrl_c_is_130(service: Service) -> None:
    """A command that was interrupted says nothing more."""
    command = [*COMMAND, "watch", "--after", "start"]
    with subprocess.Popen(
        command, env=environment(url=service.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"TIME")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, b"")


@pytest.mark.parametrize("arguments", [["list", "-o", "ndjson"], ["watch", "--after", "start"]])
def test_a_reader_that_has_seen_enough_ends_it_quietly(service: Service, arguments: list[str]) -> None:
    """Also a command that would wait for more to print."""
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment(url=service.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        until(lambda: process.poll() is not None, "it ends")
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, b"")


# --- Address and key -----------------------------------------------------------------------------------------------


def test_an_option_counts_more_than_the_variable(service: Service) -> None:
    """--url wins over PQS_URL; so do the options of `pqs load`, whose address may come from either, too."""
    assert pqs("counts", "--url", service.url, url=NOWHERE).returncode == 0
    file = os.devnull
    assert pqs("load", file, url=service.url).returncode == 0
    host, _, port = service.url.removeprefix("http://").partition(":")
    assert pqs("load", file, "--host", host, "--port", port, url=NOWHERE).returncode == 0


def test_a_key_is_asked_for_and_sent(module_database_url: str, tmp_path: Path) -> None:
    """Without a key the status is 1, with advice; a file or a variable brings it."""
    made = pqs(
        "keys", "create", "reader", "--scope", "entities:read", "--domain", "*", database_url=module_database_url
    )
    key = made.stdout.strip()
    file = tmp_path / "key"
    file.write_text(key + "\n")
    with serving(tmp_path, database_url=module_database_url, auth="required") as service:
        refused = pqs("counts", url=service.url)
        assert refused.returncode == 1
        assert "name a key by --token-file" in refused.stderr
        assert pqs("counts", url=service.url, token=key).returncode == 0
        assert pqs("counts", "--token-file", file, url=service.url, token="other").returncode == 0
        glance = pqs("status", url=service.url, token_file=file)
        assert glance.returncode == 0
        assert glance.stderr == "pqs: the key has no right to dead_letters, watermarks\n"


def test_a_call_as_curl_has_no_secret(service: Service, tmp_path: Path) -> None:
    """The line names the variable or the file, and a shell that runs it gets the answer."""
    by_variable = pqs("get", ACTIVE, "--curl", url=service.url, token=SECRET)
    assert (by_variable.returncode, by_variable.stderr) == (0, "")
    assert by_variable.stdout == (
        'curl -sS --fail-with-body -H "Authorization: Bearer $PQS_TOKEN" '
        f"'{service.url}/v1/entities/{ACTIVE}?domain=registration'\n"
    )
    file = tmp_path / "its key"
    file.write_text(SECRET)
    by_file = pqs("get", ACTIVE, "--curl", "--token-file", file, url=service.url).stdout
    assert f"$(cat '{file}')" in by_file
    assert SECRET not in by_variable.stdout + by_file
    answer = subprocess.run(["sh", "-c", by_file], capture_output=True, check=True, text=True, timeout=PATIENCE)
    assert answer.stdout == pqs("get", ACTIVE, "-o", "json", url=service.url).stdout.strip()


def test_a_commit_as_curl_is_not_made(service: Service, ask: Ask, tmp_path: Path) -> None:
    """The body is in the line, quoted for a shell; only the shell makes the call."""
    file = tmp_path / "state.json"
    file.write_text(json.dumps({"said": "it's $HOME"}))
    line = ask("workflows", "put", "curled", file, "--create", "--curl").stdout
    assert ask("workflows", "get", "curled").returncode == 3
    subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=PATIENCE)
    assert '{"said":"it\'s $HOME"}' in ask("workflows", "get", "curled").stdout


# --- Terminals -----------------------------------------------------------------------------------------------------


def test_colours_on_a_terminal_only(service: Service, ask: Ask) -> None:
    """States are coloured on a terminal, unless NO_COLOR is set."""
    arguments = ("list", "--state", "active", "--limit", 1)
    assert "\x1b[32mactive\x1b[0m" in in_terminal(*arguments, url=service.url)
    assert "\x1b" not in in_terminal(*arguments, url=service.url, NO_COLOR=1)
    assert "\x1b" not in ask(*arguments).stdout


def test_json_on_a_terminal_has_escapes(service: Service, ask: Ask) -> None:
    """Characters that would steer it are the escapes of JSON there; a program gets the bytes."""
    printed = in_terminal("get", ODD, "-o", "json", url=service.url)
    assert r"e\u001b[31mvil\u009b\u202e" in printed
    assert json.loads(printed) == json.loads(ask("get", ODD, "-o", "json").stdout)


def test_top_shows_the_service(service: Service, ask: Ask) -> None:
    """Entities by state and the rest on a screen; without a terminal it says what to use."""
    printed = in_terminal("top", "--looks", 2, "--interval", 0.2, url=service.url)
    assert "overdue liveness" in printed
    assert "changes: 0.0 a second" in printed
    refused = ask("top")
    assert refused.returncode == 2
    assert "`pqs status`" in refused.stderr
