"""No wake-up is lost: writers and waits at random, in two processes that share nothing but the database."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx

from tests.making import event_json, node
from tests.processes import serving

SECONDS = float(os.environ.get("TEST_FEED_SECONDS", "6"))  # of writing
ENTITIES = [node(number) for number in range(6)]
WAITS = 5  # for each entity, of each kind
LONG = 50  # seconds that a wait may take: one that is woken by nothing but its end is lost
WITHIN = 10.0  # seconds in which a wake-up comes, on a machine that does much else; a look alone takes one second
PAUSE = 0.25  # seconds between two events of an entity at most
STATES = ("pending_registration", "accepted", "ack_received", "active")


class History:
    """What was written to one entity: for each version its state, and when it was known to be committed."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.committed: list[float] = []

    @property
    def version(self) -> int:
        """The newest one."""
        return len(self.states)

    def first(self, state: str, after: int) -> int | None:
        """The first version above `after` in a state."""
        return next((at for at, each in enumerate(self.states, start=1) if at > after and each == state), None)


@asynccontextmanager
async def two_services(folder: Path, url: str) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of two services on one database."""
    folders = [folder / name for name in ("one", "two")]
    for each in folders:
        each.mkdir()
    with serving(folders[0], database_url=url) as one, serving(folders[1], database_url=url) as two:
        async with (
            httpx.AsyncClient(base_url=one.url, timeout=LONG + 10) as first,
            httpx.AsyncClient(base_url=two.url, timeout=LONG + 10) as second,
        ):
            yield [first, second]


async def write(clients: list[httpx.AsyncClient], entity_id: UUID, history: History, dice: random.Random) -> None:
    """Events for one entity, one after the other, by either service: half of them are heartbeats."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or history.states[-1] != "rejected":
        sequence = history.version + 1
        if history.version and dice.random() < 0.5 and time.monotonic() < end:
            state = history.states[-1]
            event = event_json("node.heartbeat", sequence, entity_id=entity_id)
        else:
            state = dice.choice(STATES) if time.monotonic() < end else "rejected"  # which is the last
            data = {"current_state": state, "node_type": "compute", "registered_at": "2026-01-01T00:00:00Z"}
            event = event_json("registration.recorded", sequence, entity_id=entity_id, data=data)
        answer = await dice.choice(clients).post("/v1/events", json=event)
        assert answer.json()["version"] == sequence, answer.text
        history.states.append(state)
        history.committed.append(time.monotonic())
        await asyncio.sleep(dice.random() * PAUSE)


async def wait_for_versions(
    clients: list[httpx.AsyncClient], entity_id: UUID, history: History, dice: random.Random
) -> int:
    """Follow an entity from version to version, until it is rejected. How often that was waited for."""
    version, waits, state = 0, 0, ""
    while state != "rejected":
        began = time.monotonic()
        answer = await dice.choice(clients).get(
            f"/v1/entities/{entity_id}", params={"after_version": version, "wait": LONG}
        )
        assert answer.status_code == 200, answer.text
        row = answer.json()
        assert row["version"] > version
        late = time.monotonic() - max(began, [*history.committed, time.monotonic()][version])
        assert late < WITHIN
        version, state = row["version"], row["current_state"]
        waits += 1
        await asyncio.sleep(dice.random() * PAUSE)
    return waits


async def wait_for_states(
    clients: list[httpx.AsyncClient], entity_id: UUID, history: History, dice: random.Random
) -> int:
    """Wait for one state after the other, each after the version in which the one before was reached."""
    version, waits = 0, 0
    while True:
        state = dice.choice(STATES)
        answer = await dice.choice(clients).get(
            f"/v1/entities/{entity_id}",
            params={"after_version": version, "until": [state, "rejected"], "wait": LONG},
        )
        assert answer.status_code == 200, answer.text
        reached = int(answer.headers["pqs-reached"])
        await asyncio.sleep(0.5)  # the writer may not have heard yet what was committed
        waits += 1
        firsts = [history.first(each, version) for each in (state, "rejected")]
        assert reached == min(each for each in firsts if each is not None)
        if history.states[reached - 1] == "rejected":
            return waits
        version = reached


async def test_no_wake_up_is_lost(tmp_path: Path, database_url: str) -> None:
    """Each wait ends soon after the version that it waits for, and no state is passed through unseen."""
    seed = random.randrange(1_000_000)
    async with two_services(tmp_path, database_url) as clients:
        histories = {entity_id: History() for entity_id in ENTITIES}
        waits: list[asyncio.Task[int]] = []
        try:
            async with asyncio.timeout(SECONDS + 90), asyncio.TaskGroup() as group:
                for number, (entity_id, history) in enumerate(histories.items()):
                    for turn in range(WAITS):
                        for kind in (wait_for_versions, wait_for_states):
                            dice = random.Random(seed + 1000 * number + turn)
                            waits.append(group.create_task(kind(clients, entity_id, history, dice)))
                    group.create_task(write(clients, entity_id, history, random.Random(seed + number)))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        assert sum(task.result() for task in waits) > len(waits)
        for client in clients:
            assert "pqs_waiting_reads 0.0" in (await client.get("/metrics")).text
