"""A Consul with access control: tokens, TLS with authorities and client certificates, namespace and datacenter."""

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from app.concurrency.breaker import CircuitBreaker
from app.domain.intents import RegisterService
from app.errors import EffectDownError, NotNowError, StartError
from app.outbound.consul import Consul, Rights, rights_of
from app.settings import read_settings
from tests.certificates import Authority
from tests.consul import Agent, consul
from tests.making import NODE

REGISTER = RegisterService(entity_id=NODE, domain="registration", node_type="gpu", tags=(), version=1)
ID = f"registration.{NODE}"


@pytest.fixture
def authority() -> Authority:
    """The authority that signs the certificates of Consul and its clients."""
    return Authority("consul")


@pytest.fixture
def agent(authority: Authority, tmp_path: Path) -> Iterator[Agent]:
    """An agent that is reached by TLS, requires a client certificate, and knows one token."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=authority.pem.decode())
    context.load_cert_chain(*authority.issue(tmp_path / "agent", "consul"))
    context.verify_mode = ssl.CERT_REQUIRED
    with consul(context) as agent:
        agent.tokens = {"one"}
        yield agent


async def register(url: str, rights: Rights) -> None:
    """Register a node, with one attempt."""
    handler = Consul(url, rights=rights, breaker=CircuitBreaker(what="Consul", down=EffectDownError))
    try:
        await handler.handle(REGISTER)
    finally:
        await handler.close()


async def test_a_node_is_registered_with_rights(agent: Agent, authority: Authority, tmp_path: Path) -> None:
    """A request has the file's token, certificate, namespace and datacenter; a changed token counts at once."""
    cert, key = authority.issue(tmp_path / "client", "pqs")
    token = tmp_path / "token"
    token.write_text("one\n")
    settings = read_settings(
        {
            "consul_url": agent.url,
            "consul_token_file": str(token),
            "consul_ca": str(authority.write(tmp_path)),
            "consul_cert": str(cert),
            "consul_key": str(key),
            "consul_namespace": "team",
            "consul_datacenter": "dc2",
        }
    )
    rights = rights_of(settings, {"CONSUL_HTTP_TOKEN": "other", "CONSUL_CACERT": "/nowhere"})
    await register(agent.url, rights)
    assert list(agent.services) == [ID]
    assert parse_qs(urlsplit(agent.last_path).query) == {"ns": ["team"], "dc": ["dc2"]}
    agent.tokens = {"two"}
    with pytest.raises(NotNowError, match="403"):
        await register(agent.url, rights)
    token.write_text("two\n")
    await register(agent.url, rights)


async def test_the_usual_variables_count_where_ours_are_not_set(
    agent: Agent, authority: Authority, tmp_path: Path
) -> None:
    """Without our settings, CONSUL_HTTP_TOKEN and CONSUL_CACERT count, as in Consul's own tools."""
    cert, key = authority.issue(tmp_path / "client", "pqs")
    settings = read_settings({"consul_url": agent.url, "consul_cert": str(cert), "consul_key": str(key)})
    usual = {"CONSUL_HTTP_TOKEN": "one", "CONSUL_CACERT": str(authority.write(tmp_path))}
    await register(agent.url, rights_of(settings, usual))
    assert list(agent.services) == [ID]
    with pytest.raises(NotNowError, match="403"):
        await register(agent.url, rights_of(settings, usual | {"CONSUL_HTTP_TOKEN": ""}))


@pytest.mark.parametrize("lacks", ["authority", "certificate"])
async def test_without_trust_nothing_is_sent(agent: Agent, authority: Authority, tmp_path: Path, lacks: str) -> None:
    """The token is not sent to a server of an unknown authority; a client without a certificate is refused."""
    cert, key = authority.issue(tmp_path / "client", "pqs")
    given = {"consul_url": agent.url, "consul_token": "one", "consul_ca": str(authority.write(tmp_path))}
    if lacks == "authority":
        given |= {"consul_ca": str(Authority("other").write(tmp_path / "other"))}
        given |= {"consul_cert": str(cert), "consul_key": str(key)}
    with pytest.raises(EffectDownError):
        await register(agent.url, rights_of(read_settings(given), {}))
    assert agent.requests == 0


async def test_without_tls_the_token_is_sent_as_well() -> None:
    """The token is sent over http too, as a local agent may have ACLs; CONSUL_CACERT is then ignored."""
    with consul() as agent:
        agent.tokens = {"one"}
        settings = read_settings({"consul_url": agent.url, "consul_token": "one"})
        await register(agent.url, rights_of(settings, {"CONSUL_CACERT": "/nowhere"}))
        assert list(agent.services) == [ID]


def test_files_that_cannot_be_used_are_refused_at_the_start(authority: Authority, tmp_path: Path) -> None:
    """An unusable file prevents the start, and the message names its setting."""
    url = {"consul_url": "https://127.0.0.1:1"}
    empty = tmp_path / "empty"
    empty.write_text("")
    cert, key = authority.issue(tmp_path / "a", "a", passphrase=b"hunter2")
    for given, usual, said in (
        ({"consul_ca": str(tmp_path / "none")}, {}, r"^PQS_CONSUL_CA: .*none holds no certificates: No such file"),
        ({}, {"CONSUL_CACERT": str(empty)}, r"^CONSUL_CACERT: .*empty holds no certificates"),
        (
            {"consul_cert": str(cert), "consul_key": str(key)},
            {},
            r"^PQS_CONSUL_CERT and .*: the key has a passphrase",
        ),
        ({"consul_cert": str(empty), "consul_key": str(key)}, {}, r"^PQS_CONSUL_CERT and PQS_CONSUL_KEY are not"),
    ):
        with pytest.raises(StartError, match=said):
            rights_of(read_settings(url | given), usual)


def test_a_token_is_not_shown() -> None:
    """No repr contains the token."""
    settings = read_settings({"consul_url": "http://127.0.0.1:1", "consul_token": "hunter2"})
    assert "hunter2" not in f"{rights_of(settings)!r} {settings!r}"
    assert rights_of(settings).token() == "hunter2"
