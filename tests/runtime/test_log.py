"""The log: its two forms, its levels, and the lines of each request."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from app.runtime.log import CorrelationFilter, JsonFormatter
from app.settings import LogLevel
from app.store.schema import HEAD
from tests.making import NODE, Json, event_json
from tests.processes import Service, pqs, serving, until

# These tests are no coroutines, and some use a database of their own.
pytestmark = pytest.mark.usefixtures("anyio_backend")

PASSWORD = "hunter2"
CORRELATION_ID = "0195d7a2-6b0e-7c41-8d4c-8f2f6f1f1a01"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"  # of a sampled trace
LEVELS = ("debug", "info", "warning", "error")

SPEAK = """
import logging, sys
from app.runtime.log import configure
from app.settings import LogFormat, LogLevel
configure(LogLevel(sys.argv[1]), LogFormat.CONSOLE)
for name in ("debug", "info", "warning", "error"):
    getattr(logging.getLogger("app.example"), name)("said at %s", name)
"""
IMPORT = """
import sys
def refuse(event, arguments):
    if event in {"socket.connect", "socket.bind", "subprocess.Popen", "os.mkdir", "os.remove", "os.rename"}:
        raise SystemExit(f"at import: {event} {arguments}")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise SystemExit(f"at import: {event} {arguments}")
sys.addaudithook(refuse)
import app.cli, app.main, logging
print(logging.getLogger().handlers, logging.getLogger("app").handlers)
"""


def python(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a script in an interpreter of its own, because a log is configured for a whole process."""
    command = [sys.executable, "-B", "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, check=False, text=True, timeout=30)


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    """A record as a logger makes it."""
    return logging.getLogger("app.example").makeRecord(
        "app.example", logging.WARNING, __file__, 1, message, arguments, None, extra=extra
    )


def line_of(entry: logging.LogRecord) -> Json:
    """The line that the JSON form makes of a record."""
    text = JsonFormatter().format(entry)
    assert "\n" not in text
    line: Json = json.loads(text)
    return line


def test_json_line() -> None:
    """A record becomes one line with its time in UTC, level, logger, message and extra fields."""
    line = line_of(record('two\nlines, "%s"', "ü", status=200, seconds=0.25, unknown="left out"))
    assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0)
    assert line == {
        "level": "warning",
        "event": "example",
        "pid": os.getpid(),
        "logger": "app.example",
        "message": 'two\nlines, "ü"',
        "status": 200,
        "seconds": 0.25,
    }


def test_json_line_of_an_error() -> None:
    """An exception is in its line, traceback included."""
    try:
        int("broken")
    except ValueError:
        entry = logging.getLogger("app.example").makeRecord(
            "app.example", logging.ERROR, __file__, 1, "a bug", (), sys.exc_info()
        )
    exception = line_of(entry)["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("'broken'")


@pytest.mark.parametrize(("current", "shown"), [(CORRELATION_ID, CORRELATION_ID), (None, "-")])
def test_correlation_id_of_a_record(current: str | None, shown: str) -> None:
    """Each record gets the current correlation id, or a dash if there is none."""
    entry = record("anything")
    assert CorrelationFilter(lambda: current).filter(entry)
    assert line_of(entry)["correlation_id"] == shown


def test_the_levels_are_all_here() -> None:
    """The levels tested below are all that can be set, least important first."""
    assert tuple(LogLevel) == LEVELS


@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str) -> None:
    """Records below the level are dropped; the others go to standard error, one line each."""
    run = python(SPEAK, level)
    assert run.stdout == ""
    assert re.findall(r"^[\d-]+ [\d:,]+ ([A-Z]+) +said at (\w+) \[-\]$", run.stderr, re.MULTILINE) == [
        (name.upper(), name) for name in LEVELS[LEVELS.index(level) :]
    ]


def test_nothing_happens_at_import() -> None:
    """Importing the service opens no connection, starts nothing, writes no file, and configures no log."""
    run = python(IMPORT)
    assert (run.stdout, run.stderr, run.returncode) == ("[] []\n", "", 0)


def lines_of(service: Service) -> list[Json]:
    """The log of a service, which is JSON line by line."""
    return [json.loads(line) for line in service.log.splitlines()]


def test_each_request_has_its_json_line(database_url: str, tmp_path: Path) -> None:
    """With PQS_ACCESS_LOG=all each request has a JSON line that says all about it, and no line has a password."""
    url = database_url.replace("postgres@", f"postgres:{PASSWORD}@")
    with serving(tmp_path, database_url=url, log_format="json", log_level="debug", access_log="all") as service:
        with service.client() as client:
            headers = {"x-correlation-id": CORRELATION_ID, "traceparent": TRACEPARENT}
            client.post("/v1/events", json=event_json("registration.initiated", 1), headers=headers)
            made = client.get("/nowhere").headers["x-correlation-id"]
        until(lambda: "/nowhere" in service.log, "the last line is written")
        requests = [line for line in lines_of(service) if line["event"] == "request"]
        shown = [(line["method"], line["path"], line["status"], line["correlation_id"]) for line in requests]
        assert shown == [("POST", "/v1/events", 200, CORRELATION_ID), ("GET", "/nowhere", 404, made)]
        assert made == str(UUID(made))
        assert all(line["level"] == "info" and 0 < line["seconds"] < 30 for line in requests)
        assert all((line["role"], line["pid"]) == ("serve", service.pid) for line in requests)
        first, second = requests
        assert (first["route"], first["outcome"], first["principal"]) == ("/v1/events", "answered", "anyone")
        assert (first["trace_id"], first["span_id"]) == (TRACE, SPAN)
        assert (second["outcome"], second["peer"]) == ("refused", "127.0.0.1")
        assert "there is nothing at /nowhere" in second["reason"]
    assert PASSWORD not in service.log + service.printed


def test_with_json_nothing_else_is_written(database_url: str, tmp_path: Path) -> None:
    """From the start to the stop, standard output stays empty, and standard error has lines of JSON."""
    with serving(tmp_path, database_url=database_url, log_format="json") as service:
        service.signal(signal.SIGTERM)
        assert service.await_end() == 0
    assert service.printed == ""
    assert [line["event"] for line in lines_of(service)][-1] == "stopped"


def test_a_start_that_fails_is_a_line_of_json(tmp_path: Path) -> None:
    """Why a command did not start is in the log, too, in its form."""
    run = pqs("relay", log_format="json", database_url="postgresql://nobody@127.0.0.1:1/x")
    assert (run.returncode, run.stdout) == (1, "")
    assert json.loads(run.stderr)["event"] == "failed"


def test_the_start_line_says_what_runs(database_url: str, tmp_path: Path) -> None:
    """One line says what the service is and works with; the database's address has no password."""
    url = database_url.replace("postgres@", f"postgres:{PASSWORD}@")
    with serving(tmp_path, database_url=url, log_format="json", sweep=True) as service:
        [line] = [line for line in lines_of(service) if line["event"] == "starting"]
        assert line["listeners"] == service.url.removeprefix("http://")
        assert line["revision"] == HEAD
        assert [line[name] for name in ("sweep", "relay", "kafka", "consul", "auth")] == [
            True,
            True,
            "off",
            "off",
            "loopback",
        ]
        assert line["database"].startswith("postgresql://postgres@")
        assert PASSWORD not in service.log


def test_a_part_that_cannot_work_is_named_at_the_start(empty_database_url: str, tmp_path: Path) -> None:
    """A schema that is missing, and a Consul and a Kafka that do not answer, have a warning each."""
    gone = {"consul_url": "http://127.0.0.1:1", "kafka": "127.0.0.1:1"}
    with serving(tmp_path, database_url=empty_database_url, log_format="json", **gone) as service:
        named = {line["part"]: line["message"] for line in lines_of(service) if line["event"] == "part.unusable"}
    assert set(named) == {"database", "Consul", "Kafka"}
    assert "pqs migrate" in named["database"]


def test_only_problems_are_logged_unless_asked(database_url: str, tmp_path: Path) -> None:
    """By default a good request, and a refused one, have no line; a sampled one has. A summary counts the others."""
    with serving(tmp_path, database_url=database_url, log_format="json") as service:
        with service.client() as client:
            client.get("/v1/state-counts")
            client.get("/nowhere")
            client.get("/livez", headers={"traceparent": TRACEPARENT})
        service.signal(signal.SIGTERM)
        service.await_end()
        lines = lines_of(service)
    assert [line["path"] for line in lines if line["event"] == "request"] == ["/livez"]
    [summary] = [line for line in lines if line["event"] == "requests"]
    assert (summary["count"], summary["refused"]) == (2, 1)


def test_slow_requests_and_statements_are_logged(database_url: str, tmp_path: Path) -> None:
    """What takes PQS_SLOW or longer has a line: a request with its route, a statement with its name, no values."""
    with serving(tmp_path, database_url=database_url, log_format="json", slow=0.000001) as service:
        with service.client() as client:
            client.post("/v1/events", json=event_json("registration.initiated", 1))
        until(lambda: '"event": "request"' in service.log, "the request is logged")
        lines = lines_of(service)
        slow = [line for line in lines if line["event"] == "statement.slow" and line["statement"] == "attempt"]
        assert [(line["pool"], line["level"]) for line in slow] == [("joined", "warning")]
        assert [line["route"] for line in lines if line["event"] == "request"] == ["/v1/events"]
        assert str(NODE) not in service.log


def test_each_request_has_its_console_line(database_url: str, tmp_path: Path) -> None:
    """On a console each request has one line with caller and address, after the lines of the start."""
    with serving(tmp_path, database_url=database_url, access_log="all") as service, service.client() as client:
        client.get("/v1/state-counts", headers={"x-correlation-id": CORRELATION_ID})
        until(lambda: service.log.count("\n") == 3, "the line is written")
        at = r"[\d-]+ [\d:,]+ INFO    "
        intents = "consul.register, consul.activate, consul.deregister"
        off = rf"{at}consul \(PQS_CONSUL_URL\) is not set: these intents are not carried out: {intents} \[-\]\n"
        start = rf"{at}starting: version .*, revision {HEAD}, listeners 127.0.0.1:\d+, .*\[-\]\n"
        line = rf"{at}GET /v1/state-counts 200 [\d.]+ ms anyone 127\.0\.0\.1 \[{CORRELATION_ID}\]\n"
        assert re.fullmatch(off + start + line, service.log)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_writes_all_stacks(database_url: str, tmp_path: Path, workers: int) -> None:
    """SIGUSR1 writes the stack of each thread and task to the log, and the service goes on."""
    with serving(tmp_path, database_url=database_url, log_format="json", workers=workers) as service:
        for pid in service.await_workers(workers) if workers > 1 else []:
            os.kill(pid, signal.SIGUSR1)
        with service.client() as client:
            client.get("/livez")
            service.signal(signal.SIGUSR1)
            until(lambda: service.log.count('"event": "stacks"') == (1 if workers == 1 else 3), "stacks are logged")
            assert client.get("/livez").status_code == 200
        stacks = [line for line in lines_of(service) if line["event"] == "stacks"]
    assert all("thread MainThread" in line["message"] for line in stacks)
    assert any("task " in line["message"] for line in stacks)


def test_draining(database_url: str, tmp_path: Path) -> None:
    """For PQS_DRAIN seconds after SIGTERM `/readyz` is 503, all else is answered, and answers end connections."""
    with serving(tmp_path, database_url=database_url, drain=3) as service:
        with service.client() as client:
            assert client.get("/readyz").status_code == 200
            service.signal(signal.SIGTERM)
            until(lambda: client.get("/readyz").status_code == 503, "it says that it is about to stop")
            for path in ("/livez", "/v1/state-counts", f"/v1/entities/{NODE}"):
                with service.client() as another:  # a new connection is accepted
                    answer = another.get(path)
                assert (answer.status_code, answer.headers["connection"]) in {(200, "close"), (404, "close")}
        assert service.await_end() == 0
