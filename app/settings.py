"""All settings: environment variables with the prefix PQS_. Entry points read them once and pass them on."""

import difflib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import platformdirs
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import StartError

PREFIX = "PQS_"
DAY = 86_400  # seconds
MIB = 1024 * 1024  # bytes


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """The form of a log line: for people, or JSON for machines."""

    CONSOLE = "console"
    JSON = "json"


class BusKind(StrEnum):
    """The bus that events leave by."""

    KAFKA = "kafka"
    MEMORY = "memory"
    OFF = "off"


# A year at most, so that the deadline computed from any event's time lies before the year 10000.
Duration = Annotated[float, Field(gt=0, le=365 * DAY)]


_HOST = r"(\[[^]]*\]|[^][:,]*)(:\d*)?"
_HOSTS = re.compile(rf"{_HOST}(,{_HOST})*")


def _postgresql(url: SecretStr) -> SecretStr:
    """A libpq address. Raises ValueError, which does not quote it: the wrong part may be the password."""
    address = url.get_secret_value().replace("postgresql+asyncpg://", "postgresql://", 1)
    with suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in {"postgresql", "postgres"} and _HOSTS.fullmatch(parts.netloc.rpartition("@")[2]):
            return SecretStr(address)
    raise ValueError(
        "an address such as postgresql://user:password@host:5432/name was expected, with special characters in "
        "its parts percent-encoded, such as %2F and %40"
    )


Address = Annotated[SecretStr, AfterValidator(_postgresql)]


def _http(url: SecretStr) -> SecretStr:
    """An HTTP address. Raises ValueError, which does not quote it: it may hold a password."""
    with suppress(ValueError):
        parts = urlsplit(url.get_secret_value())
        if parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment:
            return SecretStr(url.get_secret_value().rstrip("/"))
    raise ValueError("an address such as http://127.0.0.1:8500 was expected")


HttpAddress = Annotated[SecretStr, AfterValidator(_http)]


def _public(url: str) -> str:
    _http(SecretStr(url))
    return url.rstrip("/")


PublicUrl = Annotated[str, AfterValidator(_public)]
# The names that Kafka allows for a topic.
_TOPIC = "[a-zA-Z0-9._-]{1,249}"
_SERVER = r"([a-zA-Z_]+://)?([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?"


def _of_form(form: str, expected: str) -> AfterValidator:
    """Text that matches `form` completely; the error says what was `expected`."""

    def check(value: str) -> str:
        if re.fullmatch(form, value) is None:
            raise ValueError(f"{expected} expected, and not {value!r}")
        return value

    return AfterValidator(check)


Topic = Annotated[str, _of_form(_TOPIC, "a topic (up to 249 letters, digits, dots, underscores or hyphens) was")]
Topics = Annotated[
    str,
    _of_form(rf"{_TOPIC}(,{_TOPIC})*", "topics as topic,topic (letters, digits, dots, underscores, hyphens) were"),
]
Servers = Annotated[str, _of_form(rf"{_SERVER}(,{_SERVER})*|", "servers as host:port,host:port were")]


def _not_empty(path: object) -> object:
    if path == "":
        raise ValueError("a path was expected; it is empty")
    return path


class Settings(BaseSettings):
    """All settings. Durations are numbers of seconds, sizes numbers of bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="The address to listen on; `pqs load` sends to it.")
    port: int = Field(
        8000, ge=0, le=65_535, description="The port to listen on, 0 for a free one; `pqs load` sends to it."
    )
    workers: int = Field(1, ge=1, le=256, description="The number of processes that answer requests.")
    database_url: Address | None = Field(
        None,
        description="The PostgreSQL, as postgresql://user@host/name. Without it the service starts its own.",
    )
    database_read_url: Address | None = Field(
        None, description="A replica of that PostgreSQL, which answers lists, counts and scans."
    )
    data_dir: Annotated[Path, BeforeValidator(_not_empty)] = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("pqs")),
        description="The folder in which the service's own PostgreSQL keeps its data.",
    )
    pool_size: int = Field(8, ge=1, le=1000, description="The most database connections that a process opens.")
    statement_timeout: float = Field(
        5.0, ge=0.001, le=3600, description="The seconds after which a statement is cancelled."
    )
    ack_timeout: Duration = Field(30.0, description="The seconds in which a node has to acknowledge.")
    liveness_interval: Duration = Field(
        60.0, description="The seconds in which a node has to send a heartbeat after its activation."
    )
    liveness_window: Duration = Field(90.0, description="The seconds in which a node has to send the next heartbeat.")
    max_body: int = Field(
        8 * MIB, ge=1024, le=1024 * MIB, description="The largest request body, in bytes; NDJSON may be longer."
    )
    batching: bool = Field(True, description="Join concurrent single requests into one statement.")
    sweep: bool = Field(
        False,
        description="Turn passed deadlines into events within the service. `pqs sweep` does so whatever this says.",
    )
    action_retention: Duration = Field(
        7 * DAY, description="The seconds for which an action of a workflow is kept at least."
    )
    kafka: Servers | None = Field(None, description="Kafka's bootstrap servers, as host:port,host:port.")
    bus: BusKind = Field(
        default_factory=lambda given: BusKind.KAFKA if given.get("kafka") else BusKind.OFF,
        description="The bus for outgoing events: kafka (the default if PQS_KAFKA is set), memory, or off (else).",
    )
    relay: bool = Field(
        True, description="Send outgoing messages from within the service; otherwise run `pqs relay`."
    )
    topic_out: Topic = Field("registration-events", description="The topic to which registration events are sent.")
    topics_in: Topics | None = Field(
        None,
        description="The topics that `pqs consume` reads, as topic,topic. All events of a node must be in one topic.",
    )
    consumer_group: str = Field(
        "pqs",
        min_length=1,
        max_length=249,
        description="The consumer group of `pqs consume`; its members share the partitions.",
    )
    consul_url: HttpAddress | None = Field(
        None, description="The Consul agent, as http://host:8500, at which nodes are registered."
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="How much is logged: debug, info, warning or error.")
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="The form of a log line: console or json.")

    max_connections: int = Field(
        10_000,
        ge=8,
        le=1_000_000,
        description="How many clients' connections a process keeps open at most; one address has a quarter of them.",
    )
    public_url: PublicUrl | None = Field(
        None,
        description="Where a proxy serves this service, as https://host/prefix; for OpenAPI, and for its own pages.",
    )

    @field_validator("bus")
    @classmethod
    def _kafka_has_servers(cls, bus: BusKind, info: ValidationInfo) -> BusKind:
        if bus is BusKind.KAFKA and not info.data.get("kafka"):
            raise ValueError("kafka needs PQS_KAFKA, the bootstrap servers")
        return bus


def read_settings(given: Mapping[str, object] | None = None) -> Settings:
    """The settings: from `given` (unless None), then the environment, then the defaults.

    Raises StartError, which names the variable, for an unknown name and for a value out of range.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            endings = [each.removeprefix(PREFIX) for each in known]
            near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), endings, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            raise StartError(f"there is no setting {name}{hint} (`pqs serve --help` lists them)")
    try:
        return Settings.model_validate({name: value for name, value in (given or {}).items() if value is not None})
    except ValidationError as error:
        wrong = [
            f"{PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}"
            for each in error.errors()
            if each["type"] != "default_factory_not_called"  # a consequence of another error
        ]
        raise StartError("; ".join(wrong).replace("Value error, ", "")) from None
