"""One Settings class: environment variables with the prefix PQS_, read by entry points and passed on."""

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
    """What a log line looks like: for eyes, or for machines."""

    CONSOLE = "console"
    JSON = "json"


class BusKind(StrEnum):
    """What carries events out of the service and into it."""

    KAFKA = "kafka"
    MEMORY = "memory"
    OFF = "off"


# A year at most: so a computed deadline stays within the year 9999 for every time that an event may have.
Duration = Annotated[float, Field(gt=0, le=365 * DAY)]


_HOST = r"(\[[^]]*\]|[^][:,]*)(:\d*)?"
_HOSTS = re.compile(rf"{_HOST}(,{_HOST})*")


def _postgresql(url: SecretStr) -> SecretStr:
    """A libpq address. Raises ValueError without a word of it: what is wrong may be the password."""
    address = url.get_secret_value().replace("postgresql+asyncpg://", "postgresql://", 1)
    with suppress(ValueError):
        parts = urlsplit(address)
        if parts.scheme in {"postgresql", "postgres"} and _HOSTS.fullmatch(parts.netloc.rpartition("@")[2]):
            return SecretStr(address)
    raise ValueError(
        "an address such as postgresql://user:password@host:5432/name was expected, with %2F, %40 and the like for "
        "special characters in its parts"
    )


Address = Annotated[SecretStr, AfterValidator(_postgresql)]


def _http(url: SecretStr) -> SecretStr:
    """An HTTP address. Raises ValueError without a word of it: it may hold a password."""
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
# What Kafka takes as the name of a topic.
_TOPIC = "[a-zA-Z0-9._-]{1,249}"
_SERVER = r"([a-zA-Z_]+://)?([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?"


def _of_form(form: str, expected: str) -> AfterValidator:
    """Text that is `form` from its beginning to its end; the error says what was expected."""

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
    """What can be set. Durations are seconds, sizes are bytes."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", description="The address to listen on; for `pqs load`, to send to.")
    port: int = Field(
        8000, ge=0, le=65_535, description="The port to listen on, 0 for a free one; for `pqs load`, to send to."
    )
    workers: int = Field(1, ge=1, le=256, description="How many processes answer requests.")
    database_url: Address | None = Field(
        None,
        description="A PostgreSQL, as postgresql://user@host/name. Without it the service starts its own.",
    )
    database_read_url: Address | None = Field(None, description="A replica of it, asked for lists, counts and scans.")
    data_dir: Annotated[Path, BeforeValidator(_not_empty)] = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("pqs")),
        description="Where the service's own PostgreSQL keeps its data.",
    )
    pool_size: int = Field(8, ge=1, le=1000, description="How many database connections a process opens at most.")
    statement_timeout: float = Field(
        5.0, ge=0.001, le=3600, description="After how many seconds a statement is given up."
    )
    ack_timeout: Duration = Field(30.0, description="How many seconds a node has to acknowledge.")
    liveness_interval: Duration = Field(60.0, description="How many seconds a node has after its activation.")
    liveness_window: Duration = Field(90.0, description="How many seconds a node has after a heartbeat.")
    max_body: int = Field(8 * MIB, ge=1024, le=1024 * MIB, description="The largest body in bytes, NDJSON excepted.")
    batching: bool = Field(True, description="Join single requests that come at once into one statement.")
    sweep: bool = Field(
        False,
        description="Turn passed deadlines into events from within the service; `pqs sweep` does so in any case.",
    )
    action_retention: Duration = Field(
        7 * DAY, description="How many seconds an action of a workflow is remembered at least."
    )
    kafka: Servers | None = Field(None, description="Kafka's bootstrap servers, as host:port,host:port.")
    bus: BusKind = Field(
        default_factory=lambda given: BusKind.KAFKA if given.get("kafka") else BusKind.OFF,
        description="What carries events: kafka (the default where PQS_KAFKA is set), memory, or off (else).",
    )
    relay: bool = Field(True, description="Send what leaves the service from within it; else `pqs relay` does.")
    topic_out: Topic = Field("registration-events", description="The topic that registration events are sent to.")
    topics_in: Topics | None = Field(
        None, description="The topics that `pqs consume` reads, as topic,topic: each event of a node in the same one."
    )
    consumer_group: str = Field(
        "pqs", min_length=1, max_length=249, description="The consumer group in which it shares their partitions."
    )
    consul_url: HttpAddress | None = Field(
        None, description="A Consul agent, as http://host:8500, that nodes are registered with."
    )
    log_level: LogLevel = Field(LogLevel.INFO, description="How much is logged: debug, info, warning or error.")
    log_format: LogFormat = Field(LogFormat.CONSOLE, description="What a log line looks like: console or json.")

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
            raise ValueError("kafka needs PQS_KAFKA, the servers to begin with")
        return bus


def read_settings(given: Mapping[str, object] | None = None) -> Settings:
    """The settings: `given` (those not None) first, then the environment, then the defaults.

    Raises StartError, naming the variable, for a name that does not exist and for a value out of range.
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
            if each["type"] != "default_factory_not_called"  # which is so only because something else is wrong
        ]
        raise StartError("; ".join(wrong).replace("Value error, ", "")) from None
