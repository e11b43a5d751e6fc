"""What a worker answers to those who look after it, behind the listener that it has."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.cli.worker_door import metrics_socket, worker_calls
from app.concurrency.worker import OwnWorker
from app.errors import StartError
from app.parts import Parts
from app.runtime.side_server import answering
from app.runtime.sockets import shown
from app.settings import read_settings
from app.store.database import Database
from app.store.schema import HEAD
from tests.access.making import new_key

NOWHERE = "postgresql://nobody@127.0.0.1:1/nothing"


class Idle(OwnWorker):
    """A worker that does nothing, and says what it is told to."""

    def __init__(self) -> None:
        self.said: str | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Wait."""
        await stop.wait()

    def trouble(self) -> str | None:
        """What it was told to say."""
        return self.said


async def no_trouble() -> None:
    """Another side that can be reached."""


@asynccontextmanager
async def looked_after(url: str, worker: OwnWorker, **given: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a worker's listener."""
    settings = read_settings({"metrics_port": 0, **given})
    with metrics_socket(settings, 0) as listener:
        async with Parts(settings, url) as parts:
            app = await worker_calls(settings, parts, worker, [no_trouble])
            async with (
                answering(app, listener, None),
                httpx.AsyncClient(base_url=f"http://{shown(listener)}") as client,
            ):
                yield client


async def test_a_worker_answers_three_calls(database_url: str) -> None:
    """A worker is alive, ready at its revision, and has metrics; nothing else is there, and nothing can be sent."""
    async with looked_after(database_url, Idle()) as client:
        alive, ready, metrics = [await client.get(path) for path in ("/livez", "/readyz", "/metrics")]
        head = await client.head("/metrics")
        missing, sent = await client.get("/v1/entities"), await client.post("/metrics", content=b"x")
    assert (alive.status_code, alive.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "revision": HEAD})
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "pqs_build_info{" in metrics.text
    assert "pqs_dead_letters 0.0" in metrics.text
    assert (head.status_code, head.content) == (200, b"")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    assert (sent.status_code, sent.headers["allow"]) == (405, "GET, HEAD")


async def test_a_worker_in_trouble_is_not_ready(database_url: str) -> None:
    """`/readyz` repeats the trouble of the worker, with 503, and is ready again when it is over."""
    worker = Idle()
    async with looked_after(database_url, worker) as client:
        worker.said = "Kafka has not answered for 12 s"
        refused = await client.get("/readyz")
        worker.said = None
        assert (await client.get("/readyz")).status_code == 200
    assert (refused.status_code, refused.json()["detail"]) == (503, "Kafka has not answered for 12 s")
    assert refused.headers["retry-after"] == "1"


async def test_a_worker_without_its_database_is_alive_and_not_ready() -> None:
    """Without its database a worker is alive, has metrics of its own, and is not ready."""
    async with looked_after(NOWHERE, Idle(), statement_timeout=1) as client:
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        metrics = await client.get("/metrics")
    assert metrics.status_code == 200
    assert "pqs_dead_letters 0" not in metrics.text


async def test_a_worker_answers_only_to_its_names(database_url: str) -> None:
    """A page of a browser that has pointed its own name at this machine gets nothing (DNS rebinding)."""
    async with looked_after(database_url, Idle()) as client:
        answer = await client.get("/metrics", headers={"Host": "evil.example"})
        proxied = await client.get("/metrics", headers={"X-Forwarded-For": "10.0.0.1"})
    assert (answer.status_code, proxied.status_code) == (421, 403)


async def test_where_keys_are_asked_for_metrics_need_one(database: Database, database_url: str) -> None:
    """With PQS_AUTH=required `/metrics` needs `metrics:read`; `/readyz` is open, and tells strangers no cause."""
    key = await new_key(database, scopes=["metrics:read"])
    worker = Idle()
    async with looked_after(database_url, worker, auth="required", metrics_host="0.0.0.0") as client:
        assert (await client.get("/metrics")).status_code == 401
        assert (await client.get("/metrics", headers={"Authorization": f"Bearer {key.text}"})).status_code == 200
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        worker.said = "Kafka is a secret"
        refused = await client.get("/readyz")
        assert (await client.get("/livez", headers={"Host": "10.1.2.3:9100"})).status_code == 200
    assert (refused.status_code, refused.json()["detail"]) == (503, "the worker is not ready")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"metrics_host": "0.0.0.0"}, "Three ways out: listen on 127.0.0.1 (PQS_METRICS_HOST)"),
        ({"metrics_host": "192.0.2.1"}, "can be reached from other machines"),
        ({"metrics_host": "192.0.2.1", "auth": "insecure"}, "choose another with --metrics-host and --metrics-port"),
    ],
    ids=["any address", "an address", "not of this machine"],
)
def test_beyond_loopback_somebody_must_say_who_is_let_in(given: Mapping[str, Any], said: str) -> None:
    """A worker listens beyond loopback only if PQS_AUTH says who is let in, and only where it can."""
    with pytest.raises(StartError) as refused, metrics_socket(read_settings(given), 0):
        pass
    assert said in str(refused.value)
