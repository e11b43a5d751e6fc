"""The options of the Kafka client from the settings: security, and PQS_KAFKA_OPTIONS."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from app.errors import StartError
from app.settings import KafkaSecurity, Settings, secret_of

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the file of a password
PASSWORD = "sasl.password"  # noqa: S105 - the name of an option

# Options that have a setting of their own.
_SETTINGS: Mapping[str, str] = {
    "bootstrap.servers": "PQS_KAFKA",
    "metadata.broker.list": "PQS_KAFKA",
    "security.protocol": "PQS_KAFKA_SECURITY",
    "sasl.mechanism": "PQS_KAFKA_MECHANISM",
    "sasl.mechanisms": "PQS_KAFKA_MECHANISM",
    "sasl.username": "PQS_KAFKA_USERNAME",
    "sasl.password": "PQS_KAFKA_PASSWORD_FILE",
    "ssl.ca.location": "PQS_KAFKA_CA",
    "ssl.certificate.location": "PQS_KAFKA_CERT",
    "ssl.key.location": "PQS_KAFKA_KEY",
    "group.id": "PQS_CONSUMER_GROUP",
}
# Options on which the promises of this service depend: order, no loss, watermarks.
_OURS = {
    "acks",
    "request.required.acks",
    "enable.idempotence",
    "enable.gapless.guarantee",
    "transactional.id",
    "max.in.flight",
    "max.in.flight.requests.per.connection",
    "partitioner",
    "partitioner_cb",
    "message.timeout.ms",
    "delivery.timeout.ms",
    "delivery.report.only.error",
    "dr_cb",
    "dr_msg_cb",
    "enable.auto.commit",
    "auto.commit.enable",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.partition.eof",
    "group.protocol",
    "partition.assignment.strategy",
    "isolation.level",
    "logger",
    "log_cb",
    "error_cb",
    "plugin.library.paths",  # would run foreign code
}


class SaslClient(Protocol):
    """A producer or a consumer."""

    def set_sasl_credentials(self, username: str, password: str, /) -> object:
        """Use these for the next authentications; connections that are open stay."""


class Credentials:
    """The user and the password of a client, whose file may change while the client is connected."""

    def __init__(self, username: str, password: Callable[[], str | None]) -> None:
        self._username = username
        self._password = password
        self._current = password()
        self._looked_at = time.monotonic()

    def renew(self, client: SaslClient, options: dict[str, object]) -> None:
        """Give a changed password to a client, and to the options of its successors. Looks every LOOK seconds."""
        now = time.monotonic()
        if now < self._looked_at + LOOK:
            return
        self._looked_at = now
        password = self._password()
        if password is None or password == self._current:
            return
        self._current = options[PASSWORD] = password
        client.set_sasl_credentials(self._username, password)
        log.info("the password for Kafka has changed; new connections use it")


def credentials_of(settings: Settings) -> Credentials | None:
    """Those of one client; None where nothing can change."""
    if settings.kafka_password_file is None or settings.kafka_username is None:
        return None
    return Credentials(settings.kafka_username, secret_of(settings, "kafka_password"))


_PAIR = re.compile(r"([a-z0-9_.]+)=((?:\\.|[^\\,])*)(?:,|$)")


def client_options(settings: Settings) -> dict[str, str]:
    """The options for every Kafka client of this service; they override its defaults.

    Raises StartError for an option that has a setting of its own, and for an option that the service depends on.
    librdkafka refuses other wrong options when the client is created.
    """
    options: dict[str, str] = {}
    if settings.kafka_security is not KafkaSecurity.PLAINTEXT:
        options["security.protocol"] = settings.kafka_security.value
    named = {
        "sasl.mechanism": settings.kafka_mechanism,
        "sasl.username": settings.kafka_username,
        PASSWORD: secret_of(settings, "kafka_password")(),
        "ssl.ca.location": settings.kafka_ca,
        "ssl.certificate.location": settings.kafka_cert,
        "ssl.key.location": settings.kafka_key,
    }
    options |= {name: str(value) for name, value in named.items() if value is not None}
    for name, value in _given(settings).items():
        if name in _SETTINGS:
            raise StartError(f"PQS_KAFKA_OPTIONS: {name} is set by {_SETTINGS[name]}")
        if name in _OURS:
            raise StartError(f"PQS_KAFKA_OPTIONS: {name} is refused: the service depends on its own value")
        options[name] = value
    return options


def _given(settings: Settings) -> dict[str, str]:
    """The pairs of PQS_KAFKA_OPTIONS. Raises StartError for a repeated name."""
    text = settings.kafka_options.get_secret_value() if settings.kafka_options else ""
    options: dict[str, str] = {}
    for name, value in _PAIR.findall(text):
        if name in options:
            raise StartError(f"PQS_KAFKA_OPTIONS: {name} is given twice")
        options[name] = re.sub(r"\\(.)", r"\1", value)
    return options
