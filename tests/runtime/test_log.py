"""The log: its two forms, its levels, and the lines of each request."""

import json
import logging
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from app.runtime.log import CorrelationFilter, JsonFormatter
from app.settings import LogLevel
from tests.making import Json, event_json
from tests.processes import serving, until

# These tests are no coroutines, and some use a database of their own.
pytestmark = pytest.mark.usefixtures("anyio_backend")

PASSWORD = "hunter2"
CORRELATION_ID = "0195d7a2-6b0e-7c41-8d4c-8f2f6f1f1a01"
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


def test_each_request_has_its_json_line(database_url: str, tmp_path: Path) -> None:
    """In JSON each request has one line with method, path, status and correlation id; no line has a password."""
    url = database_url.replace("postgres@", f"postgres:{PASSWORD}@")
    with serving(tmp_path, database_url=url, log_format="json", log_level="debug") as service:
        with service.client() as client:
            headers = {"x-correlation-id": CORRELATION_ID}
            client.post("/v1/events", json=event_json("registration.initiated", 1), headers=headers)
            made = client.get("/nowhere").headers["x-correlation-id"]
        until(lambda: "/nowhere" in service.log, "the last line is written")
        lines = [json.loads(line) for line in service.log.splitlines()]
    requests = [line for line in lines if line["logger"] == "app.access"]
    shown = [(line["method"], line["path"], line["status"], line["correlation_id"]) for line in requests]
    assert shown == [("POST", "/v1/events", 200, CORRELATION_ID), ("GET", "/nowhere", 404, made)]
    assert made == str(UUID(made))
    assert all(line["level"] == "info" and 0 < line["seconds"] < 30 for line in requests)
    assert PASSWORD not in service.log + service.printed


def test_each_request_has_its_console_line(database_url: str, tmp_path: Path) -> None:
    """On a console each request has one line with caller and address; a service also lists once what is off."""
    with serving(tmp_path, database_url=database_url) as service, service.client() as client:
        client.get("/v1/state-counts", headers={"x-correlation-id": CORRELATION_ID})
        until(lambda: service.log.count("\n") == 2, "the line is written")
        at = r"[\d-]+ [\d:,]+ INFO    "
        intents = "consul.register, consul.deregister"
        off = rf"{at}consul \(PQS_CONSUL_URL\) is not set: these intents are not carried out: {intents} \[-\]\n"
        line = rf"{at}GET /v1/state-counts 200 [\d.]+ ms anyone 127\.0\.0\.1 \[{CORRELATION_ID}\]\n"
        assert re.fullmatch(off + line, service.log)
