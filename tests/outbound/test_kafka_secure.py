"""The bus on a real Kafka with TLS and SASL: accepted and refused clients, and passwords that change."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from app.errors import BusError
from app.outbound.client_log import TlsExpected, client_log
from app.outbound.kafka import KafkaBus
from app.outbound.kafka_options import client_options, credentials_of
from app.settings import Settings
from tests.broker import PATIENCE, Broker, read_topic
from tests.certificates import Authority
from tests.secure_kafka import HAS_SECURE_KAFKA, LISTENERS, REAUTHENTICATED, access

pytestmark = HAS_SECURE_KAFKA


@asynccontextmanager
async def connected(settings: Settings, seconds: float = PATIENCE) -> AsyncIterator[KafkaBus]:
    """A bus with these settings; a message that is not confirmed in time fails."""
    bus = KafkaBus(
        settings.kafka or "",
        options=client_options(settings),
        credentials=credentials_of(settings),
        delivery_timeout=timedelta(seconds=seconds),
    )
    try:
        yield bus
    finally:
        await bus.close()


@pytest.mark.parametrize(("security", "mechanism"), LISTENERS)
@pytest.mark.parametrize("named", [False, True], ids=["host", "scheme and host"])
async def test_messages_arrive_by_every_listener(
    security: str, mechanism: str | None, named: bool, kafka: Broker, topic: str, tmp_path: Path
) -> None:
    """Messages arrive with the settings only, and with the scheme in the address as well."""
    way = access(security, mechanism, tmp_path)
    if named:
        way.given["kafka"] = f"{security}://{way.given['kafka']}"
    async with connected(way.settings()) as bus:
        await bus.publish(topic, b"key", b"value", {})
    assert [message.value for message in read_topic(kafka, topic, 1)] == [b"value"]


@pytest.mark.parametrize(
    ("security", "mechanism", "wrong"),
    [
        ("sasl_ssl", "PLAIN", "password"),
        ("sasl_plaintext", "SCRAM-SHA-256", "password"),
        ("sasl_ssl", "SCRAM-SHA-512", "authority"),
        ("ssl", None, "certificate"),
    ],
)
async def test_who_is_not_who_it_should_be_gets_nothing_through(
    security: str,
    mechanism: str | None,
    wrong: str,
    topic: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong password, an unknown authority or a missing certificate is an error, and no secret is logged."""
    way = access(security, mechanism, tmp_path)
    match wrong:
        case "password":
            way.password.write_text("hunter2")
        case "authority":
            way.given["kafka_ca"] = str(Authority("other").write(tmp_path / "other"))
        case _:
            way.given |= {"kafka_cert": "", "kafka_key": ""}
    monkeypatch.setattr(client_log, "filters", [])  # another test may have had the same lines
    caplog.set_level(logging.DEBUG)
    async with connected(way.settings(), seconds=2) as bus:
        with pytest.raises(BusError):
            await bus.publish(topic, b"key", b"value", {})
    said = {"password": "Authentication failed|invalid credentials", "authority": "certificate verify failed"}
    assert any(each in caplog.text for each in said.get(wrong, "SSL").split("|")), caplog.text
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_password_changes_while_messages_go(
    mechanism: str, kafka: Broker, topic: str, tmp_path: Path
) -> None:
    """When the broker authenticates the client again it sends the new password, and no message fails."""
    way = access("sasl_plaintext", mechanism, tmp_path)
    sent: list[bytes] = []
    async with connected(way.settings()) as bus:
        await bus.publish(topic, b"key", b"0", {})
        way.rotate()
        end = time.monotonic() + 2 * REAUTHENTICATED
        while time.monotonic() < end:
            sent.append(b"%d" % len(sent))
            await bus.publish(topic, b"key", sent[-1], {})
            await asyncio.sleep(0.1)
    assert [message.value for message in read_topic(kafka, topic, 1 + len(sent))] == [b"0", *sent]


async def test_a_password_that_was_wrong_recovers_when_the_file_is_right(
    kafka: Broker, topic: str, tmp_path: Path
) -> None:
    """Once the file has the right password, messages arrive without a restart."""
    way = access("sasl_ssl", "SCRAM-SHA-512", tmp_path)
    right = way.password.read_text()
    way.password.write_text("wrong")
    async with connected(way.settings(), seconds=2) as bus:
        with pytest.raises(BusError):
            await bus.publish(topic, b"key", b"lost", {})
        way.password.write_text(right)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await bus.publish(topic, b"key", b"there", {})
                    break
                except BusError:
                    continue
    assert [message.value for message in read_topic(kafka, topic, 1)] == [b"there"]


async def test_a_plaintext_client_at_a_real_tls_port_is_told_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plaintext client at a TLS port logs the hint at TLS once, however often it tries."""
    monkeypatch.setattr(client_log, "filters", [TlsExpected()])
    caplog.set_level(logging.INFO, client_log.name)
    options: dict[str, str | int] = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 20}
    bus = KafkaBus(os.environ["TEST_KAFKA_SSL"], options=options)
    try:
        async with asyncio.timeout(PATIENCE):
            while "it may expect TLS" not in caplog.text:  # noqa: ASYNC110 - it has threads
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
    finally:
        await bus.close()
    assert caplog.text.count("it may expect TLS (PQS_KAFKA_SECURITY=ssl or sasl_ssl)") == 1
