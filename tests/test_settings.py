"""Settings: where they come from, and which are refused."""

from pathlib import Path
from typing import get_args

import pytest

from app.errors import StartError
from app.settings import PREFIX, LogFormat, LogLevel, Settings, read_settings

DAYS_365 = 31_536_000.0  # seconds

# Every number that can be set: below the lowest, the lowest, the highest, above it.
NUMBERS: dict[str, tuple[str, str, str, str]] = {
    "port": ("-1", "0", "65535", "65536"),
    "workers": ("0", "1", "256", "257"),
    "pool_size": ("0", "1", "1000", "1001"),
    "statement_timeout": ("0.0009", "0.001", "3600", "3600.1"),
    "ack_timeout": ("0", "0.001", "31536000", "31536001"),
    "liveness_interval": ("0", "0.001", "31536000", "31536001"),
    "liveness_window": ("0", "0.001", "31536000", "31536001"),
    "action_retention": ("0", "0.001", "31536000", "31536001"),
    "max_connections": ("7", "8", "1000000", "1000001"),
    "max_body": ("1023", "1024", "1073741824", "1073741825"),
}
WITHIN = [(name, value) for name, (_, *ends, _) in NUMBERS.items() for value in ends]
OUTSIDE = [(name, value) for name, (below, _, _, above) in NUMBERS.items() for value in (below, above)]

ADDRESS = "postgresql://user:password@host:5432/name was expected"


def test_defaults() -> None:
    """Without anything set, the service is for one machine, with a PostgreSQL of its own."""
    settings = read_settings()
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.database_url is None
    assert settings.database_read_url is None
    assert settings.data_dir.is_absolute()
    assert settings.data_dir.name == "pqs"
    assert (settings.ack_timeout, settings.liveness_interval, settings.liveness_window) == (30, 60, 90)
    assert (settings.statement_timeout, settings.max_body) == (5, 8 * 1024 * 1024)
    assert settings.action_retention == 604_800
    assert (settings.log_level, settings.log_format) == (LogLevel.INFO, LogFormat.CONSOLE)


def test_every_number_has_its_ends_in_the_table() -> None:
    """The table above has a line for each setting that is a number."""
    numbers = {
        name
        for name, field in Settings.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    assert numbers == set(NUMBERS)


@pytest.mark.parametrize(("name", "value"), WITHIN)
def test_number_within_its_range(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest and the highest value of a number are taken from its variable."""
    monkeypatch.setenv(PREFIX + name.upper(), value)
    assert getattr(read_settings(), name) == float(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *OUTSIDE,
        ("port", ""),
        ("port", "80.5"),
        ("workers", "many"),
        ("statement_timeout", "nan"),
        ("ack_timeout", "inf"),
        ("log_level", "loud"),
        ("log_format", "xml"),
    ],
)
def test_wrong_value_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is out of range, or none at all, is refused in one line that names its variable."""
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(StartError) as refused:
        read_settings()
    assert str(refused.value).startswith(f"PQS_{name.upper()}: Input should be ")
    assert "\n" not in str(refused.value)


def test_every_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two values that are wrong are named together."""
    monkeypatch.setenv("PQS_PORT", "70000")
    monkeypatch.setenv("PQS_WORKERS", "0")
    with pytest.raises(StartError, match=r"PQS_PORT: .*; PQS_WORKERS: "):
        read_settings()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("PQS_PROT", "; did you mean PQS_PORT?"),
        ("pqs_databse_url", "; did you mean PQS_DATABASE_URL?"),
        ("PQS_Q", ""),
    ],
)
def test_unknown_name_is_refused(name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with the prefix that is no setting is refused by name, with the nearest one that is."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(StartError) as refused:
        read_settings()
    assert str(refused.value) == f"there is no setting {name}{hint} (`pqs serve --help` lists them)"


def test_option_before_variable_before_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is given counts before the environment, and an option that was not given counts as nothing."""
    monkeypatch.setenv("PQS_PORT", "1")
    monkeypatch.setenv("PQS_DATA_DIR", str(tmp_path))
    settings = read_settings({"port": "2", "data_dir": None})
    assert (settings.port, settings.data_dir, settings.workers) == (2, tmp_path, 1)


@pytest.mark.parametrize("name", ["database_url", "database_read_url"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user@host/name",
        "postgres://user:p%2Fss@host:5432/name?sslmode=require",
        "postgresql://one:5432,two:5433/name",
        "postgresql://user@[::1]:5432/name",
        "postgresql://postgres@/name?host=%2Ftmp&port=5432",
        "postgresql:///",
    ],
)
def test_database_address(name: str, url: str) -> None:
    """A libpq address is taken as it is."""
    assert getattr(read_settings({name: url}), name).get_secret_value() == url


def test_address_with_a_driver_becomes_one_for_psql() -> None:
    """The address as SQLAlchemy writes it is taken as well, and handed on as psql wants it."""
    url = read_settings({"database_url": "postgresql+asyncpg://u:p@h/n"}).database_url
    assert url is not None
    assert url.get_secret_value() == "postgresql://u:p@h/n"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "name",
        "host=localhost password=hunter2",
        "mysql://user:hunter2@host/name",
        "postgresql://user:hunter2/x@host/name",
        "postgresql://user:hunter2@host:port/name",
        "postgresql://user:[hunter2@host/name",
    ],
)
def test_wrong_address_is_refused_without_its_password(url: str) -> None:
    """What is no address of a PostgreSQL is refused with an example, and not repeated: it may hold a password."""
    with pytest.raises(StartError) as refused:
        read_settings({"database_url": url})
    assert str(refused.value).startswith("PQS_DATABASE_URL: ")
    assert ADDRESS in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_password_is_not_shown() -> None:
    """The settings as text do not show a password."""
    settings = read_settings(
        {"database_url": "postgresql://u:hunter2@h/n", "database_read_url": "postgres://u:hunter2@h"}
    )
    assert "hunter2" not in f"{settings!r} {settings}"


# --- The bus and Consul --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "bus"),
    [
        ({}, "off"),
        ({"kafka": ""}, "off"),
        ({"kafka": "localhost:9092"}, "kafka"),
        ({"kafka": "localhost:9092", "bus": "off"}, "off"),
        ({"kafka": "localhost:9092", "bus": "memory"}, "memory"),
        ({"bus": "memory"}, "memory"),
    ],
)
def test_the_bus_is_kafka_where_kafka_is_named(given: dict[str, str], bus: str) -> None:
    """Without PQS_BUS it is `kafka` when PQS_KAFKA is set, else `off`."""
    assert read_settings(given).bus == bus


def test_kafka_needs_servers() -> None:
    """PQS_BUS=kafka alone is refused, with what is missing."""
    with pytest.raises(StartError, match=r"^PQS_BUS: kafka needs PQS_KAFKA, the bootstrap servers$"):
        read_settings({"bus": "kafka"})


@pytest.mark.parametrize("topic", ["", "a b", "a/b", "x" * 250])
def test_a_topic_has_a_name_that_kafka_takes(topic: str) -> None:
    """Letters, digits, dot, underscore and hyphen, at most 249."""
    assert read_settings({"topic_out": "a.B_c-9" + "x" * 242}).topic_out.startswith("a.B_c-9")
    with pytest.raises(StartError, match=r"^PQS_TOPIC_OUT: "):
        read_settings({"topic_out": topic})


@pytest.mark.parametrize(
    "url", ["http://localhost:8500", "https://user:secret@consul.example/prefix", "http://[::1]:8500/"]
)
def test_consul_is_an_http_address(url: str) -> None:
    """It is kept without a slash at its end, and not shown."""
    consul_url = read_settings({"consul_url": url}).consul_url
    assert consul_url is not None
    assert consul_url.get_secret_value() == url.rstrip("/")
    assert "secret" not in repr(consul_url)


@pytest.mark.parametrize(
    "url", ["", "localhost:8500", "ftp://secret@host", "http://", "http://secret:x@h?a=b", "http://[secret"]
)
def test_what_is_no_http_address_is_refused_without_being_shown(url: str) -> None:
    """The message says what was expected, and nothing of what was given."""
    with pytest.raises(StartError, match=r"^PQS_CONSUL_URL: an address such as http://") as refused:
        read_settings({"consul_url": url})
    assert "secret" not in str(refused.value)
