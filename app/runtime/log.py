"""The log: lines for people, or JSON objects for machines, each with the correlation id of its request."""

import json
import logging
import logging.config
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import click

from app.settings import LogFormat, LogLevel
from app.tracing.recorder import recording

# The fields that a line may have beside its message.
EXTRA = (
    "role",
    "correlation_id",
    "trace_id",
    "span_id",
    "method",
    "path",
    "route",
    "status",
    "outcome",
    "seconds",
    "principal",
    "peer",
    "reason",
    "count",
    "refused",
    "longest",
    "statement",
    "pool",
    "rows",
    "kind",
    "part",
    "worker",
    "version",
    "database",
    "revision",
    "listeners",
    "sweep",
    "relay",
    "kafka",
    "consul",
    "auth",
)
OURS = "app."  # how the names of our loggers begin


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: time, level, event, logger, pid, message, and the extra fields of the record.

        `event` is a name that stays; a line that was given none has the name of its logger.
        """
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", record.name.removeprefix(OURS)),
            "pid": record.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in EXTRA if getattr(record, name, None) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class CorrelationFilter(logging.Filter):
    """Gives each record the current correlation id, the ids of a sampled trace, and the role of the process."""

    def __init__(self, current: Callable[[], str | None], role: str | None = None) -> None:
        super().__init__()
        self._current = current
        self._role = role

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        record.correlation_id = self._current() or "-"
        record.role = self._role
        if (trace := recording()) is not None and not hasattr(record, "trace_id"):
            record.trace_id, record.span_id = f"{trace.trace_id:032x}", f"{trace.span_id:016x}"
        return True


def configure(
    level: LogLevel,
    form: LogFormat,
    current: Callable[[], str | None] = lambda: None,
    *,
    role: str | None = None,
) -> None:
    """Write all records at `level` and above to standard error, in `form`.

    As JSON, warnings of Python are lines of the log, too. `role` is the command that this process runs.
    """
    logging.captureWarnings(form is LogFormat.JSON)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"correlated": {"()": CorrelationFilter, "current": current, "role": role}},
            "formatters": {
                "console": {"format": "%(asctime)s %(levelname)-7s %(message)s [%(correlation_id)s]"},
                "json": {"()": JsonFormatter},
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "stream": "ext://sys.stderr",
                    "formatter": form.value,
                    "filters": ["correlated"],
                }
            },
            "root": {"level": level.value.upper(), "handlers": ["stderr"]},
            "loggers": {
                # The service writes its own line for each request.
                "uvicorn.access": {"level": "WARNING"},
                "uvicorn.error": {"level": "WARNING" if level is LogLevel.INFO else level.value.upper()},
                "alembic": {"level": "WARNING"},
                "httpx": {"level": "WARNING"},
                "httpcore": {"level": "WARNING"},
            },
        }
    )


def say(text: str, form: LogFormat, event: str) -> None:
    """Tell whoever has started this process: by printing it, or, where nothing but JSON may be written, by a line."""
    if form is LogFormat.JSON:
        logging.getLogger("app.runtime").info("%s", text, extra={"event": event})
    else:
        click.echo(text)
        with suppress(OSError):
            sys.stdout.flush()


def fail(error: Exception) -> None:
    """Say why a command could not start: a line of JSON where that is the form of the log, else plain text."""
    handlers = logging.getLogger().handlers
    if handlers and isinstance(handlers[0].formatter, JsonFormatter):
        logging.getLogger("app.cli").error("%s", error, extra={"event": "failed"})
    else:
        click.echo(f"pqs: {error}", err=True)
