"""A Kafka client without TLS at a TLS port, and the hint in the log: over real connections."""

import asyncio
import logging
import ssl
from pathlib import Path

import pytest

from app.outbound.client_log import TlsExpected, client_log
from app.outbound.kafka import KafkaBus
from tests.certificates import Authority

PATIENCE = 30.0  # seconds; only a test that fails waits that long
SAID = "a Kafka broker closes connections: it may expect TLS (PQS_KAFKA_SECURITY=ssl or sasl_ssl)"


async def test_a_plaintext_client_at_a_tls_port_is_told_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plaintext client at a TLS port logs the hint at TLS once, however often it tries."""
    monkeypatch.setattr(client_log, "filters", [TlsExpected()])
    caplog.set_level(logging.INFO, client_log.name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*Authority().issue(tmp_path, "broker"))
    attempts = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send an alert and close, as a TLS listener does for bytes that are not a handshake."""
        nonlocal attempts
        attempts += 1
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(await reader.read(1024))
        with pytest.raises(ssl.SSLError):
            session.do_handshake()
        writer.write(outgoing.read())
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    bus = KafkaBus(
        f"127.0.0.1:{server.sockets[0].getsockname()[1]}",
        options={"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 20},
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while attempts < 6 or SAID not in caplog.text:  # noqa: ASYNC110 - the client has threads of its own
                await asyncio.sleep(0.05)
    finally:
        await bus.close()
        server.close()
    assert [record.getMessage() for record in caplog.records].count(SAID) == 1
