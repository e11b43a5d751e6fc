"""The calls of Consul's HTTP API, and the `consul.*` intents: nodes as services of an agent.

https://developer.hashicorp.com/consul/api-docs: agent/service, agent/check, catalog and health. All calls may be
repeated.

The address may be that of a balancer with several agents behind it. A service lives at the agent that registered it,
and any other one answers that it does not know it. So a call that meets such an answer is made again on a new
connection, which the balancer may lead to another agent.
"""

import asyncio
import logging
import random
import ssl
from collections import defaultdict
from collections.abc import Collection
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from app.concurrency.breaker import CircuitBreaker
from app.domain.intents import ActivateService, DeregisterService, RegisterService
from app.errors import EffectDownError, IntentError, NotNowError, PqsError
from app.outbound.consul.rights import Rights
from app.outbound.consul.services import MARK, VERSION, Description, Profile, body_of, check_of, id_of
from app.tracing.context import TRACEPARENT
from app.tracing.recorder import SpanKind, recording

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

INTENTS = ("consul.register", "consul.activate", "consul.deregister")

TIMEOUT = timedelta(seconds=2)  # of each step of a request: connecting, sending, receiving
LIST_TIMEOUT = timedelta(seconds=30)  # the same for lists, which may be long
ATTEMPTS = 3  # within one call
BACKOFF = timedelta(milliseconds=100)  # the most before the second attempt; twice that before the third
TRIES = 4  # connections on which an unknown service is looked for, where no more than one agent is known
# The same for each agent, where several are known: chance decides which one a connection leads to, and one call in
# 20,000 misses the right one.
TRIES_EACH = 10
MOST_TRIES = 100  # connections on which it is looked for at most
# The most seconds between two of these. Calls for several services that ran in step would each be led to the same
# agent time and again by a balancer that takes turns.
SPREAD = 0.02
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
# In an agent's answer about a service or check that it does not have: a 404, in old releases a 500.
UNKNOWN = ("unknown service", "unknown check", "does not have associated ttl")
SAID = 200  # characters of an answer that an error quotes
AGENT_CHECK = "serfHealth"  # critical when the agent itself is gone
LEFT_OUT = "X-Consul-Results-Filtered-By-ACLs"  # the header of a list without the entries that the token may not read

T = TypeVar("T")


class Copy(Struct, frozen=True):
    """A service in the catalog, at one agent. Several agents may each have one with the same id."""

    service_id: str
    agent: str
    agent_is_up: bool
    passing: bool
    description: Description


class _Node(Struct):
    name: str = msgspec.field(name="Node")


class _Service(Struct, rename="pascal"):
    id: str = msgspec.field(name="ID")
    service: str
    tags: tuple[str, ...] | None = None
    address: str = ""
    port: int = 0
    meta: dict[str, str] | None = None


class _Check(Struct):
    id: str = msgspec.field(name="CheckID")
    status: str = msgspec.field(name="Status")


class _Instance(Struct, rename="pascal"):
    """An entry of `/v1/health/service`, as far as it counts here."""

    node: _Node
    service: _Service
    checks: list[_Check]


class Consul:
    """The agents behind one address, behind a circuit breaker of its own."""

    def __init__(
        self,
        url: str,
        *,
        rights: Rights | None = None,
        profile: Profile | None = None,
        timeout: timedelta = TIMEOUT,
        backoff: timedelta = BACKOFF,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        import httpx  # noqa: PLC0415 - a tenth of the time in which a service starts, and most have no Consul

        self._rights = rights or Rights()
        self.profile = profile or Profile()
        self._broken = (httpx.HTTPError, ssl.SSLError)  # under TLS 1.3 a refusal may come with the first answer
        where = {"ns": self._rights.namespace, "dc": self._rights.datacenter}
        # The agent is on this machine or near it: proxies of the environment are not used.
        given: dict[str, Any] = {
            "base_url": url,
            "timeout": timeout.total_seconds(),
            "trust_env": False,
            "verify": self._rights.tls or httpx.create_ssl_context(trust_env=False),  # once, for both clients
            "params": {name: value for name, value in where.items() if value is not None},
        }
        self._client = httpx.AsyncClient(**given)
        self._fresh = httpx.AsyncClient(**given, limits=httpx.Limits(max_keepalive_connections=0))
        self._backoff = backoff.total_seconds()
        self._tries = TRIES
        self._left_out = False
        self.breaker = breaker or CircuitBreaker(what="Consul", down=EffectDownError)

    async def handle(self, intent: object) -> None:
        """Carry out an intent. When this returns, Consul has done it.

        Raises EffectDownError after ATTEMPTS without an answer, UnavailableError at once while the breaker is open,
        and NotNowError after ATTEMPTS in which Consul answered but did not do it; other intents may succeed. After
        all three: try again later. Raises IntentError for an intent that is not Consul's, or that Consul refuses for
        good. A service that no agent knows counts as deregistered; the reconciler finds one that was missed.
        """
        match intent:
            case ActivateService():
                if not await self.mark(id_of(intent), passing=True, why="the node is active"):
                    await self.register(intent)
            case RegisterService():
                await self.register(intent)
            case DeregisterService():
                await self.remove(id_of(intent))
            case _:
                raise IntentError(
                    f"Consul takes a RegisterService or a DeregisterService, not {type(intent).__name__}"
                )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        await self._fresh.aclose()

    def token(self) -> str | None:
        """The token of the next call."""
        return self._rights.token()

    # --- Services. All of these raise as `handle` does. ---

    async def register(self, node: RegisterService) -> None:
        """Register a node. An agent that has its check already keeps that check's status."""
        with self.breaker.guard():
            await self._ask("PUT", "/v1/agent/service/register", body_of(node, self.profile))

    async def mark(self, service_id: str, *, passing: bool, why: str) -> bool:
        """Set the check of a service, and so begin its TTL anew. False: no agent was found that has it."""
        path = f"/v1/agent/check/update/{quote(check_of(service_id), safe='')}"
        body: dict[str, object] = {"Status": "passing" if passing else "critical", "Output": why}
        return await self._somewhere(path, body, times=1) > 0

    async def remove(self, service_id: str, *, copies: int = 1) -> int:
        """Deregister a service at up to so many agents. Returns how many had it."""
        path = f"/v1/agent/service/deregister/{quote(service_id, safe='')}"
        return await self._somewhere(path, None, times=copies)

    async def strike(self, copy: Copy) -> None:
        """Remove a copy from the catalog, without its agent. An agent that is up would enter it again."""
        with self.breaker.guard():
            body: dict[str, object] = {"Node": copy.agent, "ServiceID": copy.service_id}
            if self._rights.datacenter is not None:
                body["Datacenter"] = self._rights.datacenter
            if self._rights.namespace is not None:
                body["Namespace"] = self._rights.namespace
            await self._ask("PUT", "/v1/catalog/deregister", body)

    async def services(self) -> dict[str, list[Copy]]:
        """All services in the catalog that carry the mark, of all agents, by id.

        Logs a warning when the token may not read all of them, once until it may.
        """
        found: defaultdict[str, list[Copy]] = defaultdict(list)
        with self.breaker.guard():
            is_ours = f'ServiceMeta.{MARK} == "{self.profile.mark}"'
            names, left_out = await self._read("/v1/catalog/services", is_ours, dict[str, object])
            is_ours = f'Service.Meta.{MARK} == "{self.profile.mark}"'
            # Consul lists names that differ in case as two, and for each of them finds the services of both.
            for name in {name.lower(): name for name in names}.values():
                path = f"/v1/health/service/{quote(name, safe='')}"
                instances, some = await self._read(path, is_ours, list[_Instance])
                left_out |= some
                for instance in instances:
                    if (instance.service.meta or {}).get(MARK) == self.profile.mark:  # old releases do not filter
                        found[instance.service.id].append(_copy(instance))
        if left_out and not self._left_out:
            log.warning(
                "Consul leaves out services that its token may not read: without service:read and node:read, "
                "services of nodes that left may stay, and live nodes are registered again in each comparison"
            )
        self._left_out = left_out
        agents = {copy.agent for copies in found.values() for copy in copies if copy.agent_is_up}
        self._tries = min(TRIES_EACH * len(agents), MOST_TRIES) if len(agents) > 1 else TRIES
        return found

    # --- Requests ---

    async def _read(self, path: str, filter_: str, type_: type[T]) -> tuple[T, bool]:
        """A list, and whether entries are left out of it that the token may not read."""
        answer = await self._ask("GET", path, params={"filter": filter_})
        assert answer is not None  # noqa: S101 - `unknown` is not allowed here
        try:
            return msgspec.json.decode(answer.content, type=type_), answer.headers.get(LEFT_OUT) == "true"
        except msgspec.DecodeError as error:
            raise NotNowError(f"Consul answers {path} with something else: {error}") from error

    async def _somewhere(self, path: str, body: dict[str, object] | None, *, times: int) -> int:
        """Make a call until so many agents have carried it out, or for as many tries as are likely to find them.

        Returns how many did.
        """
        done = 0
        with self.breaker.guard():
            for attempt in range(self._tries):
                if attempt:
                    await asyncio.sleep(random.uniform(0, SPREAD))  # noqa: S311 - it spreads load
                if await self._ask("PUT", path, body, unknown=True, fresh=attempt > 0) is not None:
                    done += 1
                if done == times:
                    break
        return done

    async def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, object] | None = None,
        *,
        params: dict[str, str] | None = None,
        unknown: bool = False,
        fresh: bool = False,
    ) -> "httpx.Response | None":
        """The answer to a request. None, where `unknown` allows it: the agent does not have the service."""
        client = self._fresh if fresh else self._client
        more: dict[str, Any] = {"timeout": LIST_TIMEOUT.total_seconds()} if method == "GET" else {}
        token = self._rights.token()
        if token is not None:
            more["headers"] = {"X-Consul-Token": token}
        call = path.removeprefix("/v1/").removeprefix("agent/service/")
        trouble: PqsError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(random.uniform(0, self._backoff * 2**attempt / 2))  # noqa: S311 - it spreads load
            try:
                answer = await _traced(client, method, path, json=body, params=params, **more)
            except self._broken as error:
                trouble = EffectDownError(f"Consul does not answer: {type(error).__name__}: {error}")
                continue
            if answer.is_success:
                return answer
            if unknown and _contains(answer.text.lower(), UNKNOWN):
                return None
            said = f"status {answer.status_code}: {answer.text[:SAID]!r}"
            if answer.is_client_error and answer.status_code not in PASSING:
                raise IntentError(f"Consul refuses {call} with {said}")
            if answer.status_code in NO_ANSWER:
                trouble = EffectDownError(f"Consul does not answer: {said}")
            else:
                trouble = NotNowError(f"Consul did not {call}: {said}")
        assert trouble is not None  # noqa: S101 - there is at least one attempt
        raise trouble


async def _traced(client: "httpx.AsyncClient", method: str, path: str, **given: Any) -> "httpx.Response":
    """The answer to a request, with a span where it belongs to sampled work."""
    if (trace := recording()) is None:
        return await client.request(method, path, **given)
    span, status = trace.child(), None
    given["headers"] = {**given.get("headers", {}), TRACEPARENT: span.traceparent}
    try:
        answer = await client.request(method, path, **given)
        status = answer.status_code
        return answer
    finally:
        attributes: dict[str, str | int | float] = {"http.request.method": method, "peer.service": "consul"}
        if status is not None:
            attributes["http.response.status_code"] = status
        error = "no answer" if status is None else str(status) if status >= HTTPStatus.BAD_REQUEST else None
        span.end(f"{method} {'/'.join(path.split('/')[2:5])}", SpanKind.CLIENT, attributes, error=error)


def _contains(text: str, some: Collection[str]) -> bool:
    return any(each in text for each in some)


def _copy(instance: _Instance) -> Copy:
    service, statuses = instance.service, {check.id: check.status for check in instance.checks}
    meta = {key: value for key, value in (service.meta or {}).items() if key != VERSION}
    return Copy(
        service.id,
        instance.node.name,
        statuses.get(AGENT_CHECK) != "critical",
        statuses.get(check_of(service.id)) == "passing",
        Description(service.service, service.tags or (), service.address, service.port, meta),
    )
