"""The `consul.*` intents: nodes as services of a Consul agent.

https://developer.hashicorp.com/consul/api-docs/agent/service: register and deregister. Both may be repeated.
"""

import asyncio
import random
from datetime import timedelta
from http import HTTPStatus
from urllib.parse import quote

import httpx

from app.breaker import CircuitBreaker
from app.domain.intents import DeregisterService, RegisterService
from app.errors import EffectDownError, IntentError, NotNowError, PqsError

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
UNKNOWN_SERVICE = (
    "unknown service"  # in what Consul says when it is to deregister what it does not have: 404, once 500
)
SAID = 200  # characters of an answer that an error quotes


class Consul:
    """One Consul agent, behind a circuit breaker of its own."""

    def __init__(
        self,
        url: str,
        *,
        timeout: timedelta = TIMEOUT,
        backoff: timedelta = BACKOFF,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        # The agent is on this machine or near it: proxies of the environment are not used.
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout.total_seconds(), trust_env=False)
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

    async def _put(self, call: str, body: dict[str, object] | None) -> None:
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(random.uniform(0, self._backoff * 2**attempt / 2))  # noqa: S311 - it spreads load
            try:
                answer = await self._client.put(f"/v1/agent/service/{call}", json=body)
            except httpx.HTTPError as error:
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
