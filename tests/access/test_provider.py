"""Tokens of a real provider, by its authorization code flow; its documents, keys and tokens are used unchanged."""

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from app.access.cache import KeyCache
from app.access.guard import Guard
from app.access.principals import Principal, Scope
from app.access.refusals import UnauthenticatedError
from app.access.tokens import verifier_of
from app.settings import Posture, read_settings
from tests.processes import until

CLIENT = "console"
BACK = "https://console.example/back"


USER = {"sub": "ops", "email": "ops@example.org", "realm": {"roles": ["viewer", "other"]}, "sites": ["a", "b"]}


@contextmanager
def providing() -> Iterator[str]:
    """The address of a provider in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "oidc_provider_mock", f"--port={port}", f"--user-claims={json.dumps(USER)}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: _answers(f"{address}/.well-known/openid-configuration"), "the provider")
            yield address
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    """The address of a provider."""
    with providing() as address:
        yield address


async def id_token(provider: str, subject: str) -> str:
    """The ID token of a user who logs in."""
    async with httpx.AsyncClient(base_url=provider, trust_env=False) as client:
        asked = {"client_id": CLIENT, "redirect_uri": BACK, "response_type": "code", "scope": "openid email"}
        allowed = await client.post("/oauth2/authorize", params=asked, data={"sub": subject})
        [code] = parse_qs(urlsplit(allowed.headers["Location"]).query)["code"]
        credentials = base64.b64encode(f"{CLIENT}:secret".encode()).decode()
        answer = await client.post(
            "/oauth2/token",
            data={"grant_type": "authorization_code", "code": code, "redirect_uri": BACK},
            headers={"Authorization": f"Basic {credentials}"},
        )
        return str(answer.json()["id_token"])


def guard(provider: str, **given: str) -> Guard:
    """A guard that accepts tokens of that provider."""
    settings = read_settings({"oidc_issuer": provider, "oidc_audience": CLIENT, **given})
    return Guard(Posture.REQUIRED, KeyCache("postgresql://127.0.0.1:1/x"), verifier_of(settings)[0])


async def test_who_logs_in_at_the_provider_is_let_in(provider: str) -> None:
    """A user who logs in has the rights mapped from the token's roles, in the domains that the token lists."""
    subject = guard(
        provider,
        oidc_scopes_claim="realm.roles",
        oidc_scopes_map="viewer=entities:read,admin=operations:write",
        oidc_domains_claim="sites",
    )
    token = await id_token(provider, "ops")
    principal = await subject.authenticate([(b"authorization", f"Bearer {token}".encode())])
    assert isinstance(principal, Principal)
    assert principal.name == "oidc:ops"
    assert principal.grant.scopes == {Scope.ENTITIES_READ}
    assert principal.grant.domains == {"a", "b"}
    assert subject.known(f"Bearer {token}".encode()) is principal


async def test_a_token_for_another_client_is_refused(provider: str) -> None:
    """A token with the audience of another client is refused."""
    subject = guard(provider, oidc_audience="another")
    token = await id_token(provider, "ops")
    refused = await subject.authenticate([(b"authorization", f"Bearer {token}".encode())])
    assert isinstance(refused, UnauthenticatedError)
    assert str(refused) == "the token is for another audience"


async def test_a_token_of_another_provider_is_refused(provider: str) -> None:
    """A token of another provider is refused, although it has the same form."""
    with providing() as other:
        token = await id_token(other, "ops")
    refused = await guard(provider).authenticate([(b"authorization", f"Bearer {token}".encode())])
    assert isinstance(refused, UnauthenticatedError)
