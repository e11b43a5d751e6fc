"""The log: lines for people, or JSON objects for machines, each with the correlation id of its request."""

import json
import logging
import logging.config
from collections.abc import Callable
from datetime import UTC, datetime

from app.settings import LogFormat, LogLevel

EXTRA = (
    "correlation_id",
    "method",
    "path",
    "status",
    "seconds",
    "principal",
    "peer",
)  # the fields that a line may have beside its message


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: time, level, logger, message, and the extra fields of the record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in EXTRA if getattr(record, name, None) is not None}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class CorrelationFilter(logging.Filter):
    """Gives each record the current correlation id."""

    def __init__(self, current: Callable[[], str | None]) -> None:
        super().__init__()
        self._current = current

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        record.correlation_id = self._current() or "-"
        return True


def configure(level: LogLevel, form: LogFormat, current: Callable[[], str | None] = lambda: None) -> None:
    """Write all records at `level` and above to standard error, in `form`."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"correlated": {"()": CorrelationFilter, "current": current}},
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
