"""The `consul.*` intents: nodes as services of a Consul agent.

https://developer.hashicorp.com/consul/api-docs/agent/service: register and deregister. Both may be repeated.
"""

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Mapping
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import quote

from msgspec import Struct

from app.concurrency.breaker import CircuitBreaker
from app.domain.intents import DeregisterService, RegisterService
from app.errors import EffectDownError, IntentError, NotNowError, PqsError, StartError
from app.settings import Settings, secret_of

INTENTS = ("consul.register", "consul.deregister")

TIMEOUT = timedelta(seconds=2)  # of each step of a request: connecting, sending, receiving
ATTEMPTS = 3  # within one call
BACKOFF = timedelta(milliseconds=100)  # the most before the second attempt; twice that before the third
# Answers of the 400s after which a retry may succeed: missing rights, too many requests, and a wrong proxy or path
# that somebody may correct (Consul itself has this path for every service).
PASSING = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
# Answers of a proxy in front of a Consul that does not answer.
NO_ANSWER = {HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT}
# In Consul's answer to the deregistration of an unknown service: a 404, in old releases a 500.
UNKNOWN_SERVICE = "unknown service"
SAID = 200  # characters of an answer that an error quotes


class Rights(Struct, frozen=True):
    """The access to an agent that requires it. `token` is called for each request, because it may change."""

    token: Callable[[], str | None] = lambda: None
    tls: ssl.SSLContext | None = None
    namespace: str | None = None
    datacenter: str | None = None


def rights_of(settings: Settings, environment: Mapping[str, str] = os.environ) -> Rights:
    """The access by the settings; without them, by the environment variables of Consul's own tools.

    Raises StartError for unusable files.
    """
    token: Callable[[], str | None] = secret_of(settings, "consul_token")
    if settings.consul_token is None:
        usual = environment.get("CONSUL_HTTP_TOKEN") or None
        token = lambda: usual  # noqa: E731
    return Rights(token, _tls(settings, environment), settings.consul_namespace, settings.consul_datacenter)


def _tls(settings: Settings, environment: Mapping[str, str]) -> ssl.SSLContext | None:
    """The context for an https address with authorities or a certificate of its own; otherwise None."""
    if settings.consul_url is None or not settings.consul_url.get_secret_value().startswith("https:"):
        return None
    usual = environment.get("CONSUL_CACERT") or None
    authorities, variable = settings.consul_ca or usual, "PQS_CONSUL_CA" if settings.consul_ca else "CONSUL_CACERT"
    if authorities is None and settings.consul_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"{variable}: {authorities} holds no certificates: {error.strerror}") from None
    if settings.consul_cert is not None and settings.consul_key is not None:
        try:
            context.load_cert_chain(settings.consul_cert, settings.consul_key, password=_no_passphrase)
        except (OSError, ssl.SSLError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise StartError(
                f"PQS_CONSUL_CERT and PQS_CONSUL_KEY are not a certificate and its key: {said}"
            ) from None
    return context


def _no_passphrase() -> str:
    """Refuse a passphrase: without this function, OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a passphrase")


class Consul:
    """One Consul agent, behind a circuit breaker of its own."""

    def __init__(
        self,
        url: str,
        *,
        rights: Rights | None = None,
        timeout: timedelta = TIMEOUT,
        backoff: timedelta = BACKOFF,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        import httpx  # noqa: PLC0415 - a tenth of the time in which a service starts, and most have no Consul

        self._rights = rights or Rights()
        self._broken = (httpx.HTTPError, ssl.SSLError)  # under TLS 1.3 a refusal may come with the first answer
        where = {"ns": self._rights.namespace, "dc": self._rights.datacenter}
        # The agent is on this machine or near it: proxies of the environment are not used.
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=timeout.total_seconds(),
            trust_env=False,
            verify=self._rights.tls or True,
            params={name: value for name, value in where.items() if value is not None},
        )
        self._backoff = backoff.total_seconds()
        self.breaker = breaker or CircuitBreaker(what="Consul", down=EffectDownError)

    async def handle(self, intent: object) -> None:
        """Carry out an intent. When this returns, Consul has done it.

        Raises EffectDownError after ATTEMPTS without an answer, UnavailableError at once while the breaker is open,
        and NotNowError after ATTEMPTS in which Consul answered but did not do it; other intents may succeed. After
        all three: try again later. Raises IntentError for an intent that is not Consul's, or that Consul refuses for
        good.
        """
        body: dict[str, object] | None = None
        match intent:
            case RegisterService():
                call, body = "register", _service(intent)
            case DeregisterService():
                call = f"deregister/{quote(_id(intent), safe='')}"
            case _:
                raise IntentError(
                    f"Consul takes a RegisterService or a DeregisterService, not {type(intent).__name__}"
                )
        with self.breaker.guard():
            await self._put(call, body)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _headers(self) -> dict[str, str]:
        token = self._rights.token()
        return {} if token is None else {"X-Consul-Token": token}

    async def _put(self, call: str, body: dict[str, object] | None) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(random.uniform(0, self._backoff * 2**attempt / 2))  # noqa: S311 - it spreads load
            try:
                answer = await self._client.put(f"/v1/agent/service/{call}", json=body, headers=self._headers())
            except self._broken as error:
                trouble: PqsError = EffectDownError(f"Consul does not answer: {type(error).__name__}: {error}")
                continue
            if answer.is_success or (body is None and UNKNOWN_SERVICE in answer.text.lower()):
                return  # Consul does not know the service, as wanted
            said = f"status {answer.status_code}: {answer.text[:SAID]!r}"
            if answer.is_client_error and answer.status_code not in PASSING:
                raise IntentError(f"Consul refuses {call} with {said}")
            if answer.status_code in NO_ANSWER:
                trouble = EffectDownError(f"Consul does not answer: {said}")
            else:
                trouble = NotNowError(f"Consul did not {call}: {said}")
        raise trouble


def _id(intent: RegisterService | DeregisterService) -> str:
    return f"{intent.domain}.{intent.entity_id}"


def _service(intent: RegisterService) -> dict[str, object]:
    """The body that registers a service."""
    return {
        "ID": _id(intent),
        "Name": intent.node_type,
        "Tags": list(intent.tags),
        "Meta": {"domain": intent.domain, "version": str(intent.version)},
    }
