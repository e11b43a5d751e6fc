"""The load of a campaign: its clients, and the prober that tells when the service is back."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import NAMESPACE_URL, uuid5

import httpx
import msgspec

from tests.faults.clients import Client
from tests.faults.events import JSON, TriggerWriter, Writer
from tests.faults.history import History
from tests.faults.messages import Producing
from tests.faults.readers import Follower, Poller
from tests.faults.servers import TOPIC_IN, Servers
from tests.faults.sweeping import Silent
from tests.faults.workflows import Reducer, Workflows

PROBED_EVERY = 0.05  # seconds
SHORT = 1.0  # seconds that a probe waits for its answer
REMEMBERED = 2000  # successes
DRAIN = 90.0  # seconds for the last steps of all clients


class Prober:
    """Reads and writes at one service, again and again, for the moments at which both succeeded."""

    def __init__(self, url: str, seed: str) -> None:
        self._url, self._entity_id = url, uuid5(NAMESPACE_URL, f"{seed} prober")
        self.successes: list[tuple[float, float]] = []  # begin and end

    async def run(self, stop: asyncio.Event) -> None:
        """Probe until told to stop."""
        data = {"current_state": "active", "node_type": "probe", "registered_at": "2026-01-01T00:00:00Z"}
        async with httpx.AsyncClient(base_url=self._url, timeout=SHORT) as http:
            while not stop.is_set():
                begin = time.monotonic()
                event = {
                    "event_id": str(uuid5(self._entity_id, str(begin))),
                    "type": "registration.recorded",
                    "entity_id": str(self._entity_id),
                    "position": {"sequence": time.time_ns()},
                    "occurred_at": "2026-01-01T00:00:00Z",
                    "data": data,
                }
                try:
                    wrote = await http.post("/v1/events", content=msgspec.json.encode(event), headers=JSON)
                    read = await http.get(f"/v1/entities/{self._entity_id}")
                    if wrote.status_code == read.status_code == 200:
                        self.successes.append((begin, time.monotonic()))
                        del self.successes[:-REMEMBERED]
                except httpx.TransportError:
                    pass
                await asyncio.sleep(PROBED_EVERY)

    async def success_after(self, moment: float) -> float:
        """The end of the first success that was begun after a moment."""
        while True:
            for begin, end in self.successes:
                if begin >= moment:
                    return end
            await asyncio.sleep(0.01)


@asynccontextmanager
async def loaded(clients: Sequence[Client], prober: Prober) -> AsyncIterator[None]:
    """Let the clients work within this context; a last step that does not come to an end is a surprise."""
    stop = asyncio.Event()
    tasks = [asyncio.create_task(each.run(stop)) for each in clients]
    tasks.append(asyncio.create_task(prober.run(stop)))
    try:
        yield
        stop.set()
        _, late = await asyncio.wait(tasks, timeout=DRAIN)
        for client, task in zip(clients, tasks, strict=False):
            if task in late:
                client.surprised(f"the last step took longer than {DRAIN:.0f} s")
        await asyncio.gather(*(task for task in tasks if task not in late))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def clients(servers: Servers, seed: str, http: httpx.AsyncClient, history: History) -> list[Client]:
    """The clients of a campaign."""
    given = (seed, http, [each.url for each in servers.services], history)
    workflows = Workflows(seed)
    writers = [*(Writer(f"writer {number}", *given) for number in range(3)), TriggerWriter("triggers", *given)]
    entities = [entity.id for writer in writers for entity in writer.entities]
    everybody: list[Client] = [*writers, Silent("silent", *given), Follower("follower", *given)]
    everybody += [Poller(entities, f"poller {number}", *given) for number in range(2)]
    everybody += [Reducer(workflows, f"reducer {number}", *given) for number in range(3)]
    if servers.kafka is not None:
        servers.producer = Producing(servers.kafka, TOPIC_IN, "producer", *given)
        everybody.append(servers.producer)
    return everybody
