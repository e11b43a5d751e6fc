"""Consul's services are those of the live nodes, whatever happens to its agents."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from msgspec.structs import replace

from app.concurrency.breaker import CircuitBreaker
from app.concurrency.worker import working
from app.domain.intents import DeregisterService, register
from app.domain.registration import Registration, Timing
from app.errors import EffectDownError
from app.outbound.consul import Consul, Profile, Reconciler, Rights, warn_without_sweep
from app.outbound.delivery import to_handler
from app.outbound.relay import Relay
from app.projection.entries import EntryBuilder
from app.projection.projector import Projector
from app.runtime.metrics import Metrics
from app.settings import read_settings
from app.store.database import Database
from app.store.reconciliation import lead
from app.store.registrations import REGISTRATIONS
from tests.consul import Agent, Cluster, cluster, consul
from tests.consul import handler as consul_at
from tests.making import Json, event, node

CONSUL = dict.fromkeys(("consul.register", "consul.activate", "consul.deregister"), "consul")
PATIENCE = 30.0  # seconds; only a test that fails waits that long
TTL = 90.0  # seconds
ACTIVE = ("node.introspected", "node.registration_acked")
NODES = [node(number) for number in range(6)]


def later(seconds: float) -> str:
    """A time from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


async def send(
    projector: Projector, nodes: list[UUID], types: tuple[str, ...] = ACTIVE, *, first: int = 1, **fields: object
) -> None:
    """Triggers of some nodes, which happen now unless `fields` say otherwise."""
    data: Json = {"node_type": "gpu", "capabilities": {"address": "10.0.0.7", "port": 80, "tags": ["a"]}}
    for sequence, type_ in enumerate(types, start=first):
        given: Json = {"occurred_at": later(0), "data": data if type_ == "node.introspected" else None, **fields}
        await projector.persist([event(type_, sequence, entity_id=each, **given) for each in nodes])


def ids(nodes: list[UUID], domain: str = "registration") -> list[str]:
    """The ids of their services."""
    return sorted(f"{domain}.{each}" for each in nodes)


async def compare(database: Database, consul: Consul, *, rounds: int = 1) -> None:
    """Rounds of the reconciler, without the time between them."""
    reconciler = Reconciler(database, consul)
    for _ in range(rounds):
        await database.write(reconciler.reconcile)


@pytest.fixture
def agent() -> Iterator[Agent]:
    """An agent that must have been asked only what the documentation allows."""
    with consul() as agent:
        yield agent
        assert agent.wrong == []


@pytest.fixture
def agents() -> Iterator[Cluster]:
    """Three agents behind a balancer."""
    with cluster(3) as some:
        yield some
        assert [wrong for agent in some.agents for wrong in agent.wrong] == []


# --- One agent -----------------------------------------------------------------------------------------------------


async def test_live_nodes_are_registered_and_the_others_are_not(
    agent: Agent, projector: Projector, database: Database
) -> None:
    """Of all domains; not one that awaits its ack, has left, or was silent for too long."""
    await send(projector, NODES[:2])
    await send(projector, NODES[2:3], ACTIVE[:1])
    await send(projector, NODES[3:4], (*ACTIVE, "node.deregistered"))
    await send(projector, NODES[4:5], occurred_at=later(-3600))
    await send(projector, NODES[:1], domain="edge")
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
    assert sorted(agent.services) == sorted(ids(NODES[:2]) + ids(NODES[:1], "edge"))
    assert set(agent.statuses.values()) == {"passing"}
    assert {(each["Address"], each["Port"]) for each in agent.services.values()} == {("10.0.0.7", 80)}


async def test_a_wiped_agent_has_them_again(agent: Agent, projector: Projector, database: Database) -> None:
    """One round registers what was lost."""
    await send(projector, NODES)
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
        agent.wipe()
        await compare(database, handler)
    assert sorted(agent.services) == ids(NODES)


async def test_a_service_without_a_live_row_is_removed(
    agent: Agent, projector: Projector, database: Database
) -> None:
    """Of a node that left, and of one that never had a row; services without the mark are nobody's business."""
    await send(projector, NODES[:2])
    async with consul_at(agent.url) as handler, consul_at(agent.url, profile=Profile(mark="other")) as other:
        await compare(database, handler)
        row = await read(database, NODES[0])
        await handler.register(register(replaced(row, node(99))))
        await other.register(register(replaced(row, node(98))))
        await send(projector, NODES[:1], ("node.deregistered",), first=3)
        await compare(database, handler)
    assert sorted(agent.services) == sorted(ids([NODES[1], node(98)]))


async def test_one_round_later_nothing_is_done(
    agent: Agent, projector: Projector, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Services that are what they should be are only renewed, one call each."""
    await send(projector, NODES)
    async with consul_at(agent.url) as handler:
        with caplog.at_level(logging.INFO, "app.outbound"):
            await compare(database, handler)
            assert [record.message for record in caplog.records] == [
                "Consul was compared with the rows: 6 registered"
            ]
            before = agent.requests
            await compare(database, handler)
    assert agent.requests - before == 2 + len(NODES)
    assert (sorted(agent.updates), len(caplog.records)) == (ids(NODES), 1)


async def test_a_service_that_differs_from_its_row_is_registered_again(
    agent: Agent, projector: Projector, database: Database
) -> None:
    """Its new tags and type arrive even if the intent was lost."""
    await send(projector, NODES[:1])
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
        await send(
            projector,
            NODES[:1],
            ACTIVE[:1],
            first=3,
            data={"node_type": "gpu_x", "capabilities": {"tags": ["new"]}},
        )
        await compare(database, handler)
    [service] = agent.services.values()
    assert (service["Tags"], service["Meta"]["node_type"], "Address" in service) == (["new"], "gpu_x", False)


async def test_a_node_that_is_not_alive_does_not_pass(agent: Agent, projector: Projector, database: Database) -> None:
    """A service that a node has left over is critical until the node is active, and so is that of a silent node."""
    await send(projector, NODES[:2])
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
        await send(projector, NODES[:1], ("node.deregistered", "node.introspected"), first=3)
        await send(projector, NODES[1:2], ("node.deregistered", *ACTIVE), first=3, occurred_at=later(-3600))
        await compare(database, handler)
        assert agent.statuses == dict.fromkeys(ids(NODES[:2]), "critical")
        await send(projector, NODES[:1], ACTIVE[1:], first=5)
        await send(projector, NODES[1:2], ("node.heartbeat",), first=6)
        await compare(database, handler)
    assert agent.statuses == dict.fromkeys(ids(NODES[:2]), "passing")


async def test_consul_removes_a_silent_node_by_itself_and_it_does_not_come_back(
    agent: Agent, projector: Projector, database: Database
) -> None:
    """Without a sweep the row stays active, but the check is not renewed after the deadline."""
    await send(projector, NODES[:1])
    await send(projector, NODES[1:2], occurred_at=later(-58))  # with a second or two to live
    async with consul_at(agent.url) as handler:
        reconciler = Reconciler(database, handler)
        await compare(database, handler)
        assert agent.statuses == dict.fromkeys(ids(NODES[:2]), "passing")
        await asyncio.sleep(2.5)
        agent.pass_time(TTL + 1)
        await database.write(reconciler.renew)
        assert agent.statuses == dict(zip(ids(NODES[:1]) + ids(NODES[1:2]), ("passing", "critical"), strict=True))
        agent.pass_time(601)
        await database.write(reconciler.renew)
        await compare(database, handler)
    assert list(agent.services) == ids(NODES[:1])


async def test_one_refusal_stops_no_other(
    agent: Agent, projector: Projector, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """However many services Consul forbids, one line says so."""
    await send(projector, NODES)
    agent.forbidden = set(ids(NODES)[:3])
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
    assert sorted(agent.services) == ids(NODES)[3:]
    assert [each for each in caplog.messages if "403" in each] == [
        (
            "Consul did not do 3 calls, which the next round tries again; the first: "
            "Consul did not register: status 403: 'Permission denied'"
        )
    ]


async def test_names_that_differ_in_case_only(agent: Agent, projector: Projector, database: Database) -> None:
    """Consul lists both, and gives the services of both for each: they are no copies."""
    for each, node_type in zip(NODES[:2], ("gpu", "GPU"), strict=True):
        await send(projector, [each], ACTIVE[:1], data={"node_type": node_type})
        await send(projector, [each], ACTIVE[1:], first=2)
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
        registered = dict(agent.services)
        await compare(database, handler)
    assert sorted(agent.services) == ids(NODES[:2])
    assert all(agent.services[id_] is service for id_, service in registered.items())


async def test_a_passing_check_is_part_of_a_registration(
    agent: Agent, projector: Projector, database: Database
) -> None:
    """An agent keeps a check's status when its service is registered again; the reconciler makes it pass."""
    await send(projector, NODES[:1])
    async with consul_at(agent.url) as handler:
        await compare(database, handler)
        agent.pass_time(TTL + 1)
        data = {"node_type": "gpu", "capabilities": {"tags": ["new"]}}
        await send(projector, NODES[:1], ACTIVE[:1], first=3, data=data)
        await compare(database, handler)
    [service_id] = ids(NODES[:1])
    assert (agent.services[service_id]["Tags"], agent.statuses) == (["new"], {service_id: "passing"})


# --- Rights --------------------------------------------------------------------------------------------------------


async def test_a_new_token_registers_all_anew(agent: Agent, projector: Projector, database: Database) -> None:
    """An agent enters checks in the catalog with the token of the registration, which may be revoked by now."""
    await send(projector, NODES)
    token = "old"
    agent.tokens = {"old"}
    async with consul_at(agent.url, rights=Rights(token=lambda: token)) as handler:
        reconciler = Reconciler(database, handler)
        await database.write(reconciler.reconcile)
        token, agent.tokens = "new", {"new"}
        agent.forbidden = set(ids(NODES)[:1])
        await database.write(reconciler.reconcile)  # one is not registered, so the next round tries again
        agent.forbidden = set()
        await database.write(reconciler.reconcile)
        assert {id_: agent.registered_with[id_] for id_ in agent.services} == dict.fromkeys(ids(NODES), "new")
        agent.pass_time(TTL + 1)
        assert set(agent.catalog.statuses.values()) == {"critical"}
        registered = dict(agent.services)
        await database.write(reconciler.reconcile)
    assert set(agent.catalog.statuses.values()) == {"passing"}
    assert all(agent.services[id_] is service for id_, service in registered.items())


async def test_a_token_that_may_not_read_is_named(
    agent: Agent, projector: Projector, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Consul leaves services out without an error. A warning says so once, and again after it was put right."""
    await send(projector, NODES)
    async with consul_at(agent.url) as handler:
        agent.hidden = set(ids(NODES)[:2])
        await compare(database, handler, rounds=2)
        agent.hidden = set()
        await compare(database, handler)
        agent.hidden = set(ids(NODES)[:2])
        await compare(database, handler)
    said = [each for each in caplog.messages if "may not read" in each]
    assert len(said) == 2
    assert "service:read and node:read" in said[0]
    assert sorted(agent.services) == ids(NODES)


# --- Several agents ------------------------------------------------------------------------------------------------


async def test_behind_a_balancer_each_node_has_one_service(
    agents: Cluster, projector: Projector, database: Database
) -> None:
    """Two rounds after each node is registered with every agent there is one passing copy of each, and no other."""
    await send(projector, NODES)
    async with consul_at(agents.url) as handler:
        for each in NODES:
            intent = register(await read(database, each))
            for agent in agents.agents:
                async with consul_at(agent.url) as at_one:
                    await at_one.register(intent)
        assert len(agents.passing()) == 3 * len(NODES)
        await compare(database, handler, rounds=2)
    assert (agents.passing(), agents.catalog.ids()) == (ids(NODES), ids(NODES))


async def test_nodes_that_leave_are_gone_from_whichever_agent_has_them(
    agents: Cluster, projector: Projector, database: Database
) -> None:
    """A 404 of one agent is not the end of it: the intent looks further, and the next rounds find the rest."""
    await send(projector, NODES)
    async with consul_at(agents.url) as handler:
        await compare(database, handler)
        await send(projector, NODES[:4], ("node.deregistered",), first=3)
        for each in NODES[:2]:
            await handler.handle(DeregisterService(entity_id=each, domain="registration"))
        assert agents.catalog.ids() == ids(NODES[2:])
        await compare(database, handler)
    assert (agents.passing(), agents.catalog.ids()) == (ids(NODES[4:]), ids(NODES[4:]))


async def test_the_services_of_an_agent_that_went_away_are_with_others(
    agents: Cluster, projector: Projector, database: Database
) -> None:
    """They are registered anew, and its entries leave the catalog; when it comes back with them, they go again."""
    await send(projector, NODES)
    gone = agents.agents[0]
    async with consul_at(agents.url) as handler, consul_at(gone.url) as at_gone:
        for each in NODES[:3]:
            await at_gone.register(register(await read(database, each)))
        await compare(database, handler)
        agents.catalog.down.add(gone.name)
        await compare(database, handler)
        assert agents.passing() == ids(NODES)
        assert agents.catalog.entries[gone.name] == {}
        agents.catalog.down.clear()
        gone.sync()
        await compare(database, handler, rounds=2)
    assert (agents.passing(), agents.catalog.ids()) == (ids(NODES), ids(NODES))


async def test_another_address_of_the_same_consul(agents: Cluster, projector: Projector, database: Database) -> None:
    """After PQS_CONSUL_URL has changed, the old agent's copies run out, and clients find each node once."""
    await send(projector, NODES)
    old, new, _ = agents.agents
    async with consul_at(old.url) as handler:
        await compare(database, handler)
    async with consul_at(new.url) as handler:
        await compare(database, handler)
        assert agents.catalog.ids() == ids(NODES)
        old.pass_time(TTL + 1)
        old.sync()
        await compare(database, handler)
        assert (agents.passing(), agents.catalog.ids()) == (ids(NODES), ids(NODES))
        old.pass_time(601)
    assert (old.services, sorted(new.services)) == ({}, ids(NODES))


async def test_another_consul(agent: Agent, projector: Projector, database: Database) -> None:
    """The new one has them at once; in the old one they run out."""
    await send(projector, NODES)
    with consul() as new:
        for url in (agent.url, new.url):
            async with consul_at(url) as handler:
                await compare(database, handler)
        assert sorted(new.services) == ids(NODES)
    agent.pass_time(TTL + 1)
    assert agent.statuses == dict.fromkeys(ids(NODES), "critical")
    agent.pass_time(601)
    assert agent.services == {}


# --- The worker ----------------------------------------------------------------------------------------------------


async def test_it_renews_checks_within_their_ttl(agent: Agent, projector: Projector, database: Database) -> None:
    """Three times in each, without a comparison and without a message in the outbox."""
    await send(projector, NODES[:1])
    async with (
        consul_at(agent.url, profile=Profile(ttl=timedelta(seconds=0.3))) as handler,
        working(Reconciler(database, handler, timedelta(minutes=1))),
    ):
        await until(lambda: len(agent.updates) >= 3)
    assert list(agent.services) == ids(NODES[:1])


async def test_a_round_is_not_a_slow_statement(
    agent: Agent, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds its connection until the next one, and the log of slow statements has no line for it."""
    watching = Database(database_url, pool_size=1, statement_timeout=timedelta(seconds=5), observer=Metrics(slow=0.1))
    async with consul_at(agent.url) as handler:
        reconciler = Reconciler(watching, handler, timedelta(seconds=0.3))
        async with working(reconciler):
            await until(lambda: agent.requests >= 3)
    await watching.close()
    assert [each for each in caplog.messages if "slow" in each] == []


async def test_checks_are_renewed_while_the_catalog_does_not_answer(
    agent: Agent, projector: Projector, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Agents take renewals without their servers. When these are back, the comparison follows."""
    await send(projector, NODES[:2])
    async with consul_at(agent.url, profile=Profile(ttl=timedelta(seconds=0.3))) as handler:
        await compare(database, handler)
        agent.catalog.leaderless = True
        agent.updates.clear()
        async with working(Reconciler(database, handler, timedelta(seconds=0.2))):
            await until(lambda: len(agent.updates) >= 3 * 2)
            agent.wipe()
            agent.catalog.leaderless = False
            await until(lambda: sorted(agent.services) == ids(NODES[:2]))
    assert [each for each in caplog.messages if "is not compared" in each] == [
        (
            "Consul is not compared with the rows for now: "
            "Consul did not catalog/services: status 500: 'No cluster leader'"
        )
    ]


async def test_one_at_a_time_reconciles(agent: Agent, projector: Projector, database: Database) -> None:
    """While another session has the lock nothing is asked of Consul; when it ends, this one takes over."""
    await send(projector, NODES[:1])
    async with consul_at(agent.url) as handler:
        free = asyncio.Event()

        async def hold(connection: object) -> None:
            assert await lead(connection)  # type: ignore[arg-type]  # it is one
            held.set()
            await free.wait()

        held = asyncio.Event()
        holding = asyncio.create_task(database.write(hold))
        await held.wait()
        async with working(Reconciler(database, handler, timedelta(seconds=0.1))):
            await asyncio.sleep(0.5)
            asked = agent.requests
            free.set()
            await holding
            await until(lambda: list(agent.services) == ids(NODES[:1]))
    assert asked == 0


async def test_a_consul_that_is_down_is_waited_for(
    agent: Agent, projector: Projector, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and the worker goes on when Consul is back."""
    await send(projector, NODES[:1])
    agent.answers = [503] * 60
    breaker = CircuitBreaker(failures=1000, what="Consul", down=EffectDownError)
    async with (
        consul_at(agent.url, breaker=breaker) as handler,
        working(Reconciler(database, handler, timedelta(seconds=0.1))),
    ):
        await until(lambda: list(agent.services) == ids(NODES[:1]))
    said = [message for message in caplog.messages if "is not compared" in message]
    assert said == [
        "Consul is not compared with the rows for now: Consul does not answer: status 503: 'as the test wants it'"
    ]


async def test_through_the_outbox_a_node_passes_when_it_is_active(
    agent: Agent, database: Database, database_url: str
) -> None:
    """Critical from its introspection on, passing from its ack on, refreshed when active, gone when it leaves."""
    projector = Projector(database, Timing(), EntryBuilder(None, CONSUL))
    async with consul_at(agent.url) as handler:
        relay = Relay(
            Database(database_url, pool_size=2, statement_timeout=timedelta(seconds=5)),
            [to_handler("consul", handler.handle)],
        )
        [service_id] = ids(NODES[:1])
        async with working(relay):
            await send(projector, NODES[:1], ACTIVE[:1])
            await until(lambda: agent.statuses == {service_id: "critical"})
            await send(projector, NODES[:1], ACTIVE[1:], first=2)
            await until(lambda: agent.statuses == {service_id: "passing"})
            data = {"node_type": "gpu", "capabilities": {"tags": ["new"]}}
            await send(projector, NODES[:1], ACTIVE[:1], first=3, data=data)
            await until(lambda: agent.services[service_id]["Tags"] == ["new"])
            assert agent.statuses == {service_id: "passing"}
            agent.wipe()
            await send(projector, NODES[1:2])
            await until(lambda: agent.statuses == dict.fromkeys(ids(NODES[1:2]), "passing"))
            await send(projector, NODES[1:2], ("node.deregistered",), first=3)
            await until(lambda: agent.services == {})
        await relay._database.close()


@pytest.mark.parametrize(("sweep", "lines"), [("false", 1), ("true", 0)])
def test_without_a_sweep_a_warning_says_what_that_means(
    caplog: pytest.LogCaptureFixture, sweep: str, lines: int
) -> None:
    """And without Consul nothing is said."""
    warn_without_sweep(read_settings({"sweep": "false"}))
    warn_without_sweep(read_settings({"consul_url": "http://127.0.0.1:1", "sweep": sweep}))
    assert len(caplog.messages) == lines
    assert all("a node that sends no more heartbeats stays active" in each for each in caplog.messages)


async def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - the agent is in another thread
            await asyncio.sleep(0.01)


async def read(database: Database, entity_id: UUID) -> Registration:
    """A row."""
    found = await database.read(
        lambda connection: REGISTRATIONS.get_entity_state(connection, entity_id, "registration")
    )
    assert found is not None
    return found


def replaced(row: Registration, entity_id: UUID) -> Registration:
    """The row of another node."""
    return replace(row, entity_id=entity_id)
