"""Nodes as services of Consul, against a real HTTP server that knows the agent API."""

import socket
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

import msgspec
import pytest
from msgspec.structs import replace

from app.concurrency.breaker import FAILURES, CircuitBreaker
from app.domain.intents import ActivateService, DeregisterService, Intent, RegisterService, UpdateRegistration
from app.errors import EffectDownError, IntentError, NotNowError, UnavailableError
from app.outbound.consul.handler import ATTEMPTS
from tests.consul import Agent, cluster, consul, handler
from tests.making import NODE, node

ID = f"registration.{NODE}"
REGISTER = RegisterService(entity_id=NODE, domain="registration", node_type="gpu", tags=("a", "ü"), version=3)
ACTIVATE = ActivateService(entity_id=NODE, domain="registration", node_type="gpu", tags=(), version=5, passing=True)
DEREGISTER = DeregisterService(entity_id=NODE, domain="registration")


@pytest.fixture
def agent() -> Iterator[Agent]:
    """A Consul agent."""
    with consul() as agent:
        yield agent


async def test_a_node_is_registered_as_a_service(agent: Agent) -> None:
    """ID is domain and entity id, Name the node type, Tags the node's, Meta the mark, the domain and the version."""
    async with handler(agent.url) as consul:
        await consul.handle(REGISTER)
    [service] = agent.services.values()
    assert {name: service[name] for name in ("ID", "Name", "Tags", "Meta")} == {
        "ID": ID,
        "Name": "gpu",
        "Tags": ["a", "ü"],
        "Meta": {"registered_by": "pqs", "domain": "registration", "version": "3"},
    }
    assert (agent.wrong, agent.statuses) == ([], {ID: "critical"})


async def test_a_node_passes_from_its_activation_on(agent: Agent) -> None:
    """Its check is set; a node that Consul does not know is registered, and passes at once."""
    other = f"registration.{node(1)}"
    async with handler(agent.url) as consul:
        await consul.handle(REGISTER)
        await consul.handle(ACTIVATE)
        await consul.handle(replace(ACTIVATE, entity_id=node(1)))
    assert (agent.statuses, agent.updates) == ({ID: "passing", other: "passing"}, [ID])


async def test_an_old_message_of_the_outbox_is_still_carried_out(agent: Agent) -> None:
    """Before this release, a registration had no capabilities, and did not say whether the node is active."""
    old = {"intent": "consul.register", "entity_id": str(NODE), "domain": "d", "node_type": "gpu", "tags": ["a"]}
    async with handler(agent.url) as consul:
        await consul.handle(msgspec.convert(old | {"version": 1}, Intent))
    assert list(agent.services) == [f"d.{NODE}"]


async def test_a_node_is_deregistered(agent: Agent) -> None:
    """A deregistered node's service is removed, and other services stay."""
    other = RegisterService(entity_id=node(1), domain="registration", node_type="gpu", tags=(), version=3)
    async with handler(agent.url) as consul:
        for intent in (REGISTER, other, DEREGISTER):
            await consul.handle(intent)
    assert set(agent.services) == {f"registration.{node(1)}"}


@pytest.mark.parametrize("domain", ["a/b", "a?b#c", "ü %2F", "..", "x" * 128])
async def test_a_domain_may_hold_anything(agent: Agent, domain: str) -> None:
    """Registration and deregistration use the same id, even with characters that need escaping in a URL."""
    async with handler(agent.url) as consul:
        await consul.handle(RegisterService(entity_id=NODE, domain=domain, node_type="n", tags=(), version=1))
        assert list(agent.services) == [f"{domain}.{NODE}"]
        await consul.handle(DeregisterService(entity_id=NODE, domain=domain))
    assert (agent.services, agent.wrong) == ({}, [])


async def test_an_intent_may_be_repeated(agent: Agent) -> None:
    """A second registration changes nothing; deregistering a service that Consul does not know succeeds."""
    async with handler(agent.url) as consul:
        for intent in (REGISTER, REGISTER, DEREGISTER, DEREGISTER):
            await consul.handle(intent)
    assert agent.services == {}


@pytest.mark.parametrize("status", [0, 301, 401, 403, 404, 405, 408, 425, 429, 500, 502, 503])
async def test_what_may_pass_is_tried_again(agent: Agent, status: int) -> None:
    """A temporary error status, or no answer, is followed by another attempt."""
    agent.answers = [status] * (ATTEMPTS - 1)
    async with handler(agent.url) as consul:
        await consul.handle(REGISTER)
    assert (list(agent.services), agent.requests) == ([ID], ATTEMPTS)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (0, r"^Consul does not answer: "),
        (502, r"^Consul does not answer: status 502: 'as the test wants it'$"),
        (503, r"^Consul does not answer: status 503: "),
        (504, r"^Consul does not answer: status 504: "),
    ],
)
async def test_an_agent_that_is_down_is_left_for_later(agent: Agent, status: int, error: str) -> None:
    """After the last attempt the error allows a retry, and the breaker counts a failure."""
    agent.answers = [status] * ATTEMPTS
    async with handler(agent.url, breaker=breaker_of_one()) as consul:
        with pytest.raises(EffectDownError, match=error):
            await consul.handle(REGISTER)
        assert agent.requests == ATTEMPTS
        assert consul.breaker.is_open


@pytest.mark.parametrize("intent", [REGISTER, DEREGISTER])
@pytest.mark.parametrize("status", [401, 403, 404, 405, 429, 500])
async def test_one_that_is_not_carried_out_now_is_nobody_elses_concern(
    agent: Agent, intent: RegisterService | DeregisterService, status: int
) -> None:
    """The error quotes Consul's answer; the breaker stays closed, as another intent may succeed."""
    agent.answers = [status] * ATTEMPTS
    async with handler(agent.url, breaker=breaker_of_one()) as consul:
        with pytest.raises(
            NotNowError, match=f"(register|deregister/[^ ]+): status {status}: 'as the test wants it'$"
        ):
            await consul.handle(intent)
        await consul.handle(REGISTER)
    assert list(agent.services) == [ID]


def breaker_of_one() -> CircuitBreaker:
    """A breaker that opens at the first failure."""
    return CircuitBreaker(failures=1, what="Consul", down=EffectDownError)


@pytest.mark.parametrize(("intent", "status"), [(REGISTER, 400), (REGISTER, 413), (DEREGISTER, 400)])
async def test_what_consul_refuses_is_not_tried_again(
    agent: Agent, intent: RegisterService | DeregisterService, status: int
) -> None:
    """A permanent refusal raises an error with the status, without a retry, and the breaker counts an answer."""
    agent.answers = [status] * (FAILURES + 1)
    async with handler(agent.url) as consul:
        for attempt in range(1, FAILURES + 2):
            with pytest.raises(
                IntentError, match=f"^Consul refuses .* with status {status}: 'as the test wants it'$"
            ):
                await consul.handle(intent)
            assert agent.requests == attempt
        assert not consul.breaker.is_open


async def test_an_agent_that_says_nothing_is_given_up(agent: Agent) -> None:
    """A request to a silent agent ends at its timeout."""
    agent.silent = True
    async with handler(agent.url, timeout=timedelta(milliseconds=20)) as consul:
        with pytest.raises(EffectDownError):
            await consul.handle(REGISTER)
        agent.silent = False
        agent.released.set()


async def test_an_agent_that_is_not_there_opens_the_breaker() -> None:
    """After repeated failures Consul gets no more requests, and the error says when to retry."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening: connections are refused for as long as this lives
        async with handler(f"http://127.0.0.1:{taken.getsockname()[1]}") as consul:
            for _ in range(FAILURES):
                with pytest.raises(EffectDownError):
                    await consul.handle(REGISTER)
            with pytest.raises(
                UnavailableError, match=r"^Consul did not answer and is not called again yet$"
            ) as refused:
                await consul.handle(REGISTER)
    assert refused.value.retry_after > timedelta(seconds=50)


async def test_one_probe_closes_the_breaker_again(agent: Agent) -> None:
    """Once the breaker's time is over and Consul is back, the next intent and all later ones succeed."""
    now = [0.0]
    breaker = CircuitBreaker(failures=1, clock=lambda: now[0], what="Consul", down=EffectDownError)
    agent.answers = [503] * ATTEMPTS
    async with handler(agent.url, breaker=breaker) as consul:
        with pytest.raises(EffectDownError):
            await consul.handle(REGISTER)
        stood = [breaker.is_open]
        now[0] = 61.0
        await consul.handle(REGISTER)
        stood.append(breaker.is_open)
    assert (stood, list(agent.services)) == ([True, False], [ID])


async def test_attempts_are_spread(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two attempts the handler waits for a random time, whose upper bound doubles."""
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr("random.uniform", uniform)
    agent.answers = [500] * ATTEMPTS
    async with handler(agent.url, backoff=timedelta(seconds=1)) as consul:
        with pytest.raises(NotNowError):
            await consul.handle(REGISTER)
    assert [low for low, _ in bounds] == [0.0] * (ATTEMPTS - 1)
    assert bounds[0][1] == 1.0
    assert all(later == 2 * earlier for (_, earlier), (_, later) in pairwise(bounds))


@pytest.mark.parametrize(
    "intent",
    [UpdateRegistration(entity_id=NODE, domain="registration", changes={"node_type": "x"}, read_version=1), {}, None],
)
async def test_what_is_no_intent_of_consuls_is_refused(agent: Agent, intent: object) -> None:
    """An intent that is not Consul's is refused without a request to the agent."""
    async with handler(agent.url) as consul:
        with pytest.raises(IntentError, match=f"not {type(intent).__name__}$"):
            await consul.handle(intent)
    assert agent.requests == 0


async def test_a_proxy_of_the_environment_is_passed_by(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is called directly, despite HTTP_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with handler(agent.url) as consul:
        await consul.handle(REGISTER)
    assert list(agent.services) == [ID]


@pytest.mark.parametrize("said", ["Unknown service", "CheckID does not have associated TTL"])
async def test_an_old_agent_says_with_a_500_that_it_does_not_know_a_service(agent: Agent, said: str) -> None:
    """That counts as unknown, too."""
    agent.unknown = (500, said)
    async with handler(agent.url) as consul:
        await consul.handle(DEREGISTER)
        await consul.handle(ACTIVATE)
    assert agent.statuses == {ID: "passing"}


@pytest.mark.parametrize("agents", [2, 3])
async def test_a_404_of_one_agent_is_not_the_end_of_it(agents: int) -> None:
    """Behind a balancer a service is found wherever it is, and only once nobody has it it is registered."""
    with cluster(agents) as some:
        for number in range(4):
            entity_id = node(number)
            async with handler(some.agents[-1].url) as at_one:
                await at_one.handle(replace(REGISTER, entity_id=entity_id))
            async with handler(some.url) as consul:
                await consul.handle(replace(ACTIVATE, entity_id=entity_id))
                assert some.passing() == [f"registration.{entity_id}"]
                await consul.handle(replace(DEREGISTER, entity_id=entity_id))
                assert some.catalog.ids() == []


async def test_what_is_no_catalog_is_not_taken_for_an_empty_one(agent: Agent) -> None:
    """A proxy that answers with a page of its own makes nobody register everything anew."""
    async with handler(agent.url) as consul:
        await consul.handle(REGISTER)
        agent.page = "<html>"
        with pytest.raises(NotNowError, match=r"^Consul answers /v1/catalog/services with something else: "):
            await consul.services()
