"""The Kafka client's options: made from the settings, and accepted or refused by librdkafka."""

from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from app.errors import StartError
from app.outbound.kafka import KafkaBus
from app.outbound.kafka_options import client_options
from app.settings import read_settings
from tests.certificates import Authority


def options(**given: str) -> dict[str, str]:
    """The options for these settings."""
    return client_options(read_settings({"kafka": "127.0.0.1:1", **given}))


def test_without_settings_there_are_none() -> None:
    """Without settings the client has no options beyond the usual ones."""
    assert options() == {}


def test_security_as_librdkafka_names_it(tmp_path: Path) -> None:
    """Protocol, mechanism, user, password file, authorities, certificate and key become options of librdkafka."""
    authority = Authority()
    ca, (cert, key) = authority.write(tmp_path), authority.issue(tmp_path, "pqs")
    password = tmp_path / "password"
    password.write_text("hunter2\n")
    made = options(
        kafka_security="sasl_ssl",
        kafka_mechanism="SCRAM-SHA-512",
        kafka_username="pqs",
        kafka_password_file=str(password),
        kafka_ca=str(ca),
        kafka_cert=str(cert),
        kafka_key=str(key),
        kafka_options="socket.keepalive.enable=true",
    )
    assert made == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "pqs",
        "sasl.password": "hunter2",
        "ssl.ca.location": str(ca),
        "ssl.certificate.location": str(cert),
        "ssl.key.location": str(key),
        "socket.keepalive.enable": "true",
    }
    Producer({"bootstrap.servers": "127.0.0.1:1", **made}).close()
    Consumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g", **made}).close()


def test_values_may_have_commas_and_equal_signs() -> None:
    """In a value a comma is escaped, and an equal sign is not."""
    made = options(kafka_options=r"sasl.oauthbearer.extensions=a=b\,c=d,client.rack=r\\1,statistics.interval.ms=")
    assert made == {
        "sasl.oauthbearer.extensions": "a=b,c=d",
        "client.rack": r"r\1",
        "statistics.interval.ms": "",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("acks=0", "acks is refused: the service depends on its own value"),
        ("enable.idempotence=false", "enable.idempotence is refused"),
        ("partitioner=random", "partitioner is refused"),
        ("enable.auto.commit=true", "enable.auto.commit is refused"),
        ("auto.offset.reset=latest", "auto.offset.reset is refused"),
        ("plugin.library.paths=/tmp/x.so", "plugin.library.paths is refused"),
        ("security.protocol=ssl", "security.protocol is set by PQS_KAFKA_SECURITY"),
        ("sasl.password=hunter2", "sasl.password is set by PQS_KAFKA_PASSWORD_FILE"),
        ("bootstrap.servers=a:1", "bootstrap.servers is set by PQS_KAFKA"),
        ("group.id=g", "group.id is set by PQS_CONSUMER_GROUP"),
        ("client.rack=a,client.rack=b", "client.rack is given twice"),
    ],
)
def test_what_the_service_depends_on_is_refused(given: str, said: str) -> None:
    """An option that the service sets itself is refused by a line with its name and setting, without a value."""
    with pytest.raises(StartError, match=rf"^PQS_KAFKA_OPTIONS: {said}") as refused:
        options(kafka_options=given)
    assert "hunter2" not in str(refused.value)


async def test_what_librdkafka_does_not_know_is_refused_at_the_start() -> None:
    """An unknown option is refused at the start, by name."""
    with pytest.raises(StartError, match=r'^the Kafka client refuses its settings: No such .* "no.such.option"'):
        KafkaBus("127.0.0.1:1", options=options(kafka_options="no.such.option=1"))


async def test_what_librdkafka_cannot_use_is_refused_at_the_start(tmp_path: Path) -> None:
    """An unusable value, such as a missing file, is refused at the start."""
    with pytest.raises(StartError, match=r"^the Kafka client refuses its settings: .*ssl\.ca\.location"):
        KafkaBus("127.0.0.1:1", options=options(kafka_security="ssl", kafka_ca=str(tmp_path / "none")))
