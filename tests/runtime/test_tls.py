"""TLS of the service: over real connections, before and after its files change."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from app.errors import StartError
from app.runtime import tls
from app.runtime.tls import ServerTls
from tests.certificates import Authority

PATIENCE = 30.0  # seconds; only a test that fails waits that long


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that sends one line to each client; yields its port."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readline()
            writer.write(b"hello\n")
            await writer.drain()
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    try:
        async with asyncio.timeout(PATIENCE):
            yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def trusting(authority: Authority, *, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """A client's TLS context that trusts this authority."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    if client is not None:
        context.load_cert_chain(*client)
    return context


async def name_seen(port: int, context: ssl.SSLContext, *, server_name: str | None = None) -> str:
    """The common name of the server's certificate, seen on a connection that exchanges a line."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=server_name)
    try:
        writer.write(b"\n")
        assert await reader.readline() == b"hello\n"
        found = writer.get_extra_info("ssl_object").getpeercert()
        return str(dict(pair[0] for pair in found["subject"])["commonName"])
    finally:
        writer.close()


def renewed(subject: ServerTls) -> bool:
    """Check the files twice, as changes count only once they have settled; whether they were taken over."""
    return any(subject.renew() for _ in range(2))


async def test_a_certificate_is_taken_over_without_a_restart(tmp_path: Path) -> None:
    """New connections get the renewed certificate, with or without a server name; an open one stays."""
    authority = Authority()
    cert, key = authority.issue(tmp_path, "before")
    subject = ServerTls(cert, key)
    assert subject.renew() is False
    client = trusting(authority)
    async with serving(subject.context) as port:
        assert await name_seen(port, client) == "before"
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        authority.issue(tmp_path, "after")
        assert renewed(subject)
        assert await name_seen(port, client) == "after"
        assert await name_seen(port, client, server_name="localhost") == "after"
        writer.write(b"\n")
        assert await reader.readline() == b"hello\n"
        writer.close()


@pytest.mark.parametrize("fault", ["a key of another one", "no key", "nonsense", "a passphrase"])
async def test_files_that_cannot_be_used_leave_the_old_ones(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Unusable files cause one warning and no change; a good pair is used afterwards."""
    authority = Authority()
    cert, key = authority.issue(tmp_path, "before")
    subject = ServerTls(cert, key)
    match fault:
        case "a key of another one":
            key.write_bytes(authority.issue(tmp_path / "other", "other")[1].read_bytes())
        case "no key":
            key.unlink()
        case "nonsense":
            cert.write_text("hunter2")
        case _:
            authority.issue(tmp_path, "after", passphrase=b"hunter2")
    assert [subject.renew() for _ in range(4)] == [False] * 4
    assert caplog.text.count("the new TLS files cannot be used") == 1
    assert "hunter2" not in caplog.text
    client = trusting(authority)
    async with serving(subject.context) as port:
        assert await name_seen(port, client) == "before"
        authority.issue(tmp_path, "after")
        assert renewed(subject)
        assert await name_seen(port, client) == "after"


async def test_half_of_a_pair_is_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Between the writes of a certificate and of its key nothing changes, and no warning is logged."""
    authority = Authority()
    cert, key = authority.issue(tmp_path, "before")
    subject = ServerTls(cert, key)
    new_cert, new_key = authority.issue(tmp_path / "new", "after")
    cert.write_bytes(new_cert.read_bytes())
    assert subject.renew() is False
    key.write_bytes(new_key.read_bytes())
    caplog.set_level(logging.INFO)
    assert renewed(subject)
    assert [record.getMessage() for record in caplog.records] == ["the TLS certificate was renewed"]


async def test_a_client_has_to_have_a_certificate_where_authorities_are_set(tmp_path: Path) -> None:
    """With authorities set, a client needs a certificate of theirs; the authorities may be exchanged too."""
    servers, clients, others = Authority("servers"), Authority("clients"), Authority("others")
    cert, key = servers.issue(tmp_path, "server")
    subject = ServerTls(cert, key, clients.write(tmp_path))
    good = trusting(servers, client=clients.issue(tmp_path / "good", "node"))
    bad = trusting(servers, client=others.issue(tmp_path / "bad", "node"))
    async with serving(subject.context) as port:
        assert await name_seen(port, good) == "server"
        for refused in (trusting(servers), bad):
            with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
                await name_seen(port, refused)
        others.write(tmp_path)
        assert renewed(subject)
        assert await name_seen(port, bad) == "server"
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            await name_seen(port, good)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_tls_begins_at_1_2(tmp_path: Path) -> None:
    """A client with TLS 1.1 is refused, one with 1.2 is accepted."""
    authority = Authority()
    subject = ServerTls(*authority.issue(tmp_path, "server"))
    async with serving(subject.context) as port:
        client = trusting(authority)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await name_seen(port, client) == "server"
        client.minimum_version = ssl.TLSVersion.TLSv1_1
        client.set_ciphers("DEFAULT@SECLEVEL=0")
        client.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await name_seen(port, client)


async def test_the_files_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are watched until the stop."""
    monkeypatch.setattr(tls, "LOOK", timedelta(milliseconds=10))
    authority = Authority()
    subject = ServerTls(*authority.issue(tmp_path, "before"))
    stop = asyncio.Event()
    task = asyncio.create_task(subject.run(stop))
    client = trusting(authority)
    async with serving(subject.context) as port:
        authority.issue(tmp_path, "after")
        while await name_seen(port, client) != "after":  # noqa: ASYNC110 - the files are looked at now and then
            await asyncio.sleep(0.01)
        stop.set()
        await task


def test_a_start_needs_files_that_can_be_used(tmp_path: Path) -> None:
    """Unusable files prevent the start; the message names setting and file, and shows none of the content."""
    authority = Authority()
    cert, key = authority.issue(tmp_path, "server")
    _, other = authority.issue(tmp_path / "other", "other")
    locked = authority.issue(tmp_path / "locked", "locked", passphrase=b"hunter2")
    empty = tmp_path / "empty"
    empty.write_text("")
    for files, said in (
        ((cert, tmp_path / "none"), "none cannot be read: No such file"),
        ((cert, other), "are not a certificate and its key: key values mismatch"),
        (locked, "the key has a passphrase"),
        ((empty, key), "are not a certificate and its key"),
        ((cert, key, empty), "empty holds no certificates"),
    ):
        with pytest.raises(StartError, match=rf"^PQS_TLS_CERT and PQS_TLS_KEY: .*{said}"):
            ServerTls(*files)
