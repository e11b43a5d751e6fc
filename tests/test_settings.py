"""Settings: their sources, and refused values."""

import os
from pathlib import Path
from typing import get_args

import pytest

from app.errors import StartError
from app.runtime.processes import export
from app.settings import (
    PREFIX,
    SECRETS,
    KafkaSecurity,
    LogFormat,
    LogLevel,
    Posture,
    Settings,
    read_settings,
    secret_of,
    secrets_in,
)

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
    "changes_keep": ("0", "0.001", "31536000", "31536001"),
    "followers": ("0", "1", "1000000", "1000001"),
    "max_body": ("1023", "1024", "1073741824", "1073741825"),
    "body_memory": ("1023", "1024", "1099511627776", "1099511627777"),
    "trace_limit": ("-1", "0", "100000", "100001"),
    "slow": ("0", "0.000001", "3600", "3600.1"),
    "metrics_port": ("-1", "0", "65535", "65536"),
    "drain": ("-1", "0", "3600", "3600.1"),
    "max_skew": ("-1", "0", "315360000000", "315360000001"),
    "consul_ttl": ("0.9", "1", "86400", "86401"),
    "consul_remove_after": ("59", "60", "86400", "86401"),
    "consul_reconcile": ("0", "0.1", "86400", "86401"),
    "oidc_leeway": ("-1", "0", "300", "301"),
}
WITHIN = [(name, value) for name, (_, *ends, _) in NUMBERS.items() for value in ends]
OUTSIDE = [(name, value) for name, (below, _, _, above) in NUMBERS.items() for value in (below, above)]

ADDRESS = "postgresql://user:password@host:5432/name was expected"


def test_defaults() -> None:
    """By default the service is for one machine, with its own PostgreSQL."""
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
    """The table above has a line for each numeric setting."""
    numbers = {
        name
        for name, field in Settings.model_fields.items()
        if {int, float} & {field.annotation, *get_args(field.annotation)}
    }
    assert numbers == set(NUMBERS)


@pytest.mark.parametrize(("name", "value"), WITHIN)
def test_number_within_its_range(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest and the highest value of a numeric setting are accepted from its variable."""
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
    """A value out of range, or not a number, is refused in one line that names its variable."""
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(StartError) as refused:
        read_settings()
    assert str(refused.value).startswith(f"PQS_{name.upper()}: Input should be ")
    assert "\n" not in str(refused.value)


def test_every_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One message names both of two wrong values."""
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
    """An unknown variable with our prefix is refused, with the nearest known setting."""
    monkeypatch.setenv(name, "1")
    with pytest.raises(StartError) as refused:
        read_settings()
    assert str(refused.value) == f"there is no setting {name}{hint} (`pqs serve --help` lists them)"


def test_option_before_variable_before_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A given option overrides the environment; an option that is not given does not."""
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
    """A libpq address is accepted unchanged."""
    assert getattr(read_settings({name: url}), name).get_secret_value() == url


def test_address_with_a_driver_becomes_one_for_psql() -> None:
    """A SQLAlchemy address is accepted too, and converted to psql's form."""
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
    """Text that is not a PostgreSQL address is refused with an example, and not repeated: it may hold a password."""
    with pytest.raises(StartError) as refused:
        read_settings({"database_url": url})
    assert str(refused.value).startswith("PQS_DATABASE_URL: ")
    assert ADDRESS in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_password_is_not_shown() -> None:
    """The text form of the settings shows no password."""
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
    """Without PQS_BUS, the bus is `kafka` if PQS_KAFKA is set, and otherwise `off`."""
    assert read_settings(given).bus == bus


def test_kafka_needs_servers() -> None:
    """PQS_BUS=kafka without servers is refused, and the message names the missing setting."""
    with pytest.raises(StartError, match=r"^PQS_BUS: kafka needs PQS_KAFKA, the bootstrap servers$"):
        read_settings({"bus": "kafka"})


@pytest.mark.parametrize("topic", ["", "a b", "a/b", "x" * 250])
def test_a_topic_has_a_name_that_kafka_takes(topic: str) -> None:
    """A topic's name may have letters, digits, dots, underscores and hyphens, at most 249 in all."""
    assert read_settings({"topic_out": "a.B_c-9" + "x" * 242}).topic_out.startswith("a.B_c-9")
    with pytest.raises(StartError, match=r"^PQS_TOPIC_OUT: "):
        read_settings({"topic_out": topic})


@pytest.mark.parametrize("url", ["http://localhost:8500", "https://consul.example/prefix", "http://[::1]:8500/"])
def test_consul_is_an_http_address(url: str) -> None:
    """Consul's address is stored without a trailing slash, and is not shown."""
    consul_url = read_settings({"consul_url": url}).consul_url
    assert consul_url is not None
    assert consul_url.get_secret_value() == url.rstrip("/")
    assert url not in repr(consul_url)


@pytest.mark.parametrize("url", ["https://user:secret@consul.example", "http://secret@localhost:8500"])
def test_user_information_in_consuls_address_is_refused(url: str) -> None:
    """Credentials in Consul's address are refused by a message that names the token's setting and hides them."""
    with pytest.raises(StartError, match=r"^PQS_CONSUL_URL: user information .* PQS_CONSUL_TOKEN_FILE$") as refused:
        read_settings({"consul_url": url})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8500", "ftp://secret@host", "http://", "http://secret:x@h?a=b", "http://[secret"]
)
def test_what_is_no_http_address_is_refused_without_being_shown(url: str) -> None:
    """The message names the expected form, and shows nothing of the value."""
    with pytest.raises(StartError, match=r"^PQS_CONSUL_URL: an address such as http://") as refused:
        read_settings({"consul_url": url})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("consul_mark", value) for value in ("", 'a"b', "a b", "x" * 65)],
        *[("consul_address_from", value) for value in ("", ",", "a,", "a..b", "a b", "a,b,c", ".a")],
    ],
)
def test_marks_and_paths_for_consul_are_of_a_form(name: str, value: str) -> None:
    """A mark stands in a filter of Consul, and a path leads somewhere."""
    with pytest.raises(StartError, match=rf"^PQS_{name.upper()}: .* expected, and not "):
        read_settings({name: value})


# --- Access and wires ----------------------------------------------------------------------------------------------


def test_access_is_for_this_machine_by_default() -> None:
    """By default loopback needs no setup, and nothing is open beyond it."""
    settings = read_settings()
    assert settings.auth is Posture.LOOPBACK
    assert settings.oidc_issuer is None
    assert (settings.kafka_security, settings.oidc_leeway) == (KafkaSecurity.PLAINTEXT, 30)
    assert settings.oidc_algorithms == "RS256,PS256,ES256,EdDSA"


OIDC = {"oidc_issuer": "https://issuer.example/realm", "oidc_audience": "pqs"}
SASL = {
    "kafka_security": "sasl_ssl",
    "kafka_mechanism": "SCRAM-SHA-512",
    "kafka_username": "pqs",
    "kafka_password": "hunter2",
}
CONSUL = {"consul_url": "https://consul.example:8501"}


@pytest.mark.parametrize(
    "given",
    [
        OIDC,
        OIDC | {"oidc_issuer": "http://127.0.0.1:9400", "oidc_algorithms": "ES256"},
        OIDC | {"oidc_scopes_map": "node-admin=operations:write,node-admin=operations:read"},
        {"tls_cert": "c.pem", "tls_key": "k.pem", "tls_client_ca": "ca.pem"},
        SASL,
        SASL | {"kafka_ca": "ca.pem", "kafka_cert": "c.pem", "kafka_key": "k.pem", "kafka": "SASL_SSL://b:9093"},
        {"kafka_security": "sasl_ssl", "kafka_mechanism": "OAUTHBEARER"},
        {"kafka_options": r"socket.keepalive.enable=true,sasl.oauthbearer.extensions=a=b\\,c=d"},
        CONSUL | {"consul_token": "t", "consul_ca": "ca.pem", "consul_namespace": "n", "consul_datacenter": "d"},
        {"allowed_hosts": "*", "cors_origins": "https://a.example,http://[::1]:3000"},
    ],
    ids=str,
)
def test_access_settings_that_go_together(given: dict[str, str]) -> None:
    """Consistent access settings are accepted unchanged."""
    settings = read_settings(given)
    assert all(
        str(value) in str(getattr(settings, name)) or "**" in str(getattr(settings, name))
        for name, value in given.items()
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"auth": "none"}, "PQS_AUTH: Input should be 'loopback', 'required' or 'insecure'"),
        ({"oidc_issuer": "https://i.example"}, "PQS_OIDC_ISSUER needs PQS_OIDC_AUDIENCE"),
        ({"oidc_audience": "a"}, "PQS_OIDC_AUDIENCE needs PQS_OIDC_ISSUER"),
        (OIDC | {"oidc_issuer": "http://i.example"}, "PQS_OIDC_ISSUER: an address such as https://"),
        (OIDC | {"oidc_issuer": "https://u:p@i.example"}, "PQS_OIDC_ISSUER: an address such as https://"),
        (OIDC | {"oidc_algorithms": "HS256"}, "PQS_OIDC_ALGORITHMS: algorithms out of RS256, PS256, ES256, EdDSA"),
        (OIDC | {"oidc_algorithms": "RS256,none"}, "PQS_OIDC_ALGORITHMS: algorithms out of RS256"),
        (OIDC | {"oidc_scopes_map": "admin"}, "PQS_OIDC_SCOPES_MAP: pairs as name=scope,name=scope were expected"),
        ({"tls_cert": "c"}, "PQS_TLS_CERT needs PQS_TLS_KEY"),
        ({"tls_key": "k"}, "PQS_TLS_KEY needs PQS_TLS_CERT"),
        ({"tls_client_ca": "ca"}, "PQS_TLS_CLIENT_CA needs PQS_TLS_CERT"),
        ({"tls_cert": ""}, "PQS_TLS_CERT: a path was expected; it is empty"),
        ({"kafka_security": "tls"}, "PQS_KAFKA_SECURITY: Input should be 'plaintext', 'ssl', "),
        ({"kafka_security": "sasl_ssl"}, "PQS_KAFKA_SECURITY=sasl_ssl needs PQS_KAFKA_MECHANISM"),
        (SASL | {"kafka_security": "ssl"}, "PQS_KAFKA_MECHANISM needs PQS_KAFKA_SECURITY=sasl_ssl or sasl_plaintext"),
        (
            {"kafka_security": "sasl_ssl", "kafka_mechanism": "PLAIN"},
            "PQS_KAFKA_MECHANISM=PLAIN needs PQS_KAFKA_USERNAME and PQS_KAFKA_PASSWORD_FILE",
        ),
        ({"kafka_ca": "ca"}, "PQS_KAFKA_CA needs PQS_KAFKA_SECURITY=ssl or sasl_ssl, not plaintext"),
        (SASL | {"kafka_cert": "c"}, "PQS_KAFKA_CERT needs PQS_KAFKA_KEY"),
        ({"kafka_options": "a"}, "PQS_KAFKA_OPTIONS: options as name=value,name=value were expected"),
        ({"kafka": "SSL://b:9093"}, "PQS_KAFKA names ssl:// and PQS_KAFKA_SECURITY is plaintext: set "),
        (SASL | {"kafka": "PLAINTEXT://b:9092"}, "PQS_KAFKA names plaintext:// and PQS_KAFKA_SECURITY is sasl_ssl"),
        ({"consul_token": "t"}, "PQS_CONSUL_TOKEN needs PQS_CONSUL_URL"),
        (CONSUL | {"consul_cert": "c"}, "PQS_CONSUL_CERT needs PQS_CONSUL_KEY"),
        (
            {"consul_url": "http://localhost:8500", "consul_ca": "ca"},
            "PQS_CONSUL_CA needs an https address in PQS_CONSUL_URL",
        ),
        ({"allowed_hosts": "a/b"}, "PQS_ALLOWED_HOSTS: host names as a.example,b.example"),
        ({"cors_origins": "a.example"}, "PQS_CORS_ORIGINS: origins as https://console.example"),
        ({"cors_origins": "https://a.example/path"}, "PQS_CORS_ORIGINS: origins as https://console.example"),
    ],
    ids=str,
)
def test_access_settings_that_contradict_each_other(given: dict[str, str], said: str) -> None:
    """Contradictory access settings are refused in one line that begins with the variable and shows no secret."""
    with pytest.raises(StartError) as refused:
        read_settings(given)
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)


def test_options_of_kafka_are_refused_without_being_shown() -> None:
    """Refused options of Kafka are not shown, as they may hold a password."""
    with pytest.raises(StartError) as refused:
        read_settings({"kafka_options": "ssl.key.password=hunter2,,"})
    assert "hunter2" not in str(refused.value)


VALUES = {
    "database_url": "postgresql://u:hunter2@h/n",
    "database_read_url": "postgresql://u:hunter2@h/r",
    "kafka_password": "hunter2",
    "kafka_options": "ssl.key.password=hunter2",
    "consul_token": "hunter2",
    "oidc_client_secret": "hunter2",
}
BESIDE = {
    "kafka_password": {name: value for name, value in SASL.items() if name != "kafka_password"},
    "consul_token": CONSUL,
    "oidc_client_secret": {"oidc_issuer": "https://i.example", "oidc_audience": "pqs", "oidc_client_id": "console"},
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_be_in_a_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The content of the file, without its line end, is the setting's value, and is not shown."""
    file = tmp_path / "secret"
    file.write_text(VALUES[name] + "\n")
    monkeypatch.setenv(f"{PREFIX}{name.upper()}_FILE", str(file))
    settings = read_settings(BESIDE.get(name, {}))
    assert getattr(settings, name).get_secret_value() == VALUES[name]
    assert "hunter2" not in f"{settings!r} {settings} {secret_of(settings, name)!r}"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_a_file_is_read_again_when_it_changes(name: str, tmp_path: Path) -> None:
    """A changed file counts from then on; if the file is gone, its last content still counts."""
    file = tmp_path / "secret"
    file.write_text(VALUES[name])
    secret = secret_of(read_settings({f"{name}_file": str(file), **BESIDE.get(name, {})}), name)
    said = [secret()]
    another, third = VALUES[name] + "2", VALUES[name] + "three"
    file.write_text(another)
    said.append(secret())
    file.unlink()
    said.append(secret())
    file.write_text(third)
    assert [*said, secret()] == [VALUES[name], another, another, third]


def test_a_file_that_holds_something_else_than_before_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the file no longer holds an address the last one counts, with a warning that shows nothing of the file."""
    file = tmp_path / "address"
    file.write_text("postgresql://pqs@127.0.0.1/one\n")
    secret = secret_of(read_settings({"database_url_file": str(file)}), "database_url")
    file.write_text("hunter2")
    assert [secret(), secret()] == ["postgresql://pqs@127.0.0.1/one"] * 2
    assert caplog.text.count("does not hold what its setting expects; its last content stays in force") == 1
    assert "hunter2" not in caplog.text
    file.write_text("postgresql://pqs@127.0.0.1/other\n")
    assert secret() == "postgresql://pqs@127.0.0.1/other"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_set_once(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A value and a file for one setting are refused, as it is unclear which counts."""
    file = tmp_path / "secret"
    file.write_text(VALUES[name])
    monkeypatch.setenv(f"{PREFIX}{name.upper()}", VALUES[name])
    variable = f"PQS_{name.upper()}"
    with pytest.raises(StartError, match=rf"^{variable}: set it or {variable}_FILE, not both$"):
        read_settings({f"{name}_file": str(file)})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "is empty"),
        (b"\xff", "is not text"),
        (b"x" * 70_000, "larger"),
    ],
)
def test_a_file_without_a_secret_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    """A file without a secret is refused in a line that names the variable and the file."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StartError, match=rf"^PQS_CONSUL_TOKEN_FILE: the file {file} .*{said}"):
        read_settings(CONSUL | {"consul_token_file": str(file)})


def test_secrets_on_a_command_line_are_warned_of() -> None:
    """Each secret on a command line is named with the setting to use; an address without a password is not one."""
    given = {"database_url": "postgresql://h/n", "database_read_url": "postgresql://u:p@h/n", "consul_token": "t"}
    assert [line.partition(" ")[0] for line in secrets_in(given)] == ["--database-read-url", "--consul-token"]
    assert secrets_in({"kafka_password": None}) == []
    assert [line.partition(" ")[0] for line in secrets_in({"database_url": "postgresql:///?password=p"})] == [
        "--database-url"
    ]


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ("socket.keepalive.enable=true", False),
        ("client.rack=password=1", False),
        ("ssl.key.password=x", True),
        ("client.id=a,ssl.keystore.password=x", True),
        ("sasl.oauthbearer.client.secret=x", True),
        ("sasl.oauthbearer.config=principal=x", True),
        ("ssl.key.pem=x", True),
        ("ssl.certificate.pem=x", False),
    ],
)
def test_options_of_kafka_on_a_command_line_are_warned_of(options: str, *, warned: bool) -> None:
    """Options of Kafka on a command line cause a warning if one is a secret by its name."""
    said = secrets_in({"kafka_options": options})
    line = "--kafka-options shows a secret to everybody on this machine; set PQS_KAFKA_OPTIONS_FILE"
    assert said == ([line] if warned else [])


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_a_file_does_not_get_into_the_environment(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Worker processes get the file's name, and read the file themselves."""
    file = tmp_path / "secret"
    file.write_text(VALUES[name])
    monkeypatch.setattr("os.environ", {})
    export(read_settings({f"{name}_file": str(file), **BESIDE.get(name, {})}))
    assert os.environ[f"PQS_{name.upper()}_FILE"] == str(file)
    assert "hunter2" not in str(os.environ)
    assert getattr(read_settings(), name).get_secret_value() == VALUES[name]
