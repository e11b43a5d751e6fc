"""`pqs consume` and `pqs sweep` as processes that are looked after."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx

from tests.broker import Broker
from tests.consuming import produce
from tests.making import life
from tests.processes import COMMAND, PATIENCE, environment, pqs, refusal, until

LISTENER = re.compile(r"listeners (127\.0\.0\.1:\d+) \(metrics\)")


@contextmanager
def worker(name: str, **settings: object) -> Iterator[tuple[httpx.Client, "subprocess.Popen[str]"]]:
    """A running worker: a client of its listener, and the process."""
    with subprocess.Popen(
        [*COMMAND, name, "--metrics-port", "0"],
        env=environment(**settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            listener = None
            for line in process.stderr:
                if listener := LISTENER.search(line):
                    break
            assert listener is not None, "no line named the listener"
            with httpx.Client(base_url=f"http://{listener[1]}", timeout=PATIENCE) as client:
                yield client, process
        finally:
            process.kill()
            process.communicate(timeout=PATIENCE)


def answers(client: httpx.Client, path: str) -> int:
    """The status of a call; 0 while nothing answers."""
    try:
        return client.get(path).status_code
    except httpx.ConnectError:
        return 0


async def test_a_consumer_is_looked_after(kafka: Broker, topic: str, database_url: str) -> None:
    """`pqs consume` names its listener, is ready once it reads, counts its events, and stops with success."""
    produce(kafka, topic, life())
    with worker("consume", database_url=database_url, kafka=kafka.servers, topics_in=topic) as (client, process):
        until(lambda: answers(client, "/readyz") == 200, "the consumer is ready")
        series = 'pqs_events_total{outcome="applied",source="kafka",type="registration.activated"} 1.0'
        until(lambda: series in client.get("/metrics").text, "the events are counted")
        metrics = client.get("/metrics").text
        assert f'pqs_watermark_age_seconds{{partition="0",topic="{topic}"}}' in metrics
        assert 'pqs_pool_size{pool="consumer"}' in metrics
        process.terminate()
        assert process.wait(PATIENCE) == 0


async def test_a_sweep_is_looked_after(database_url: str) -> None:
    """`pqs sweep` is ready, and has its own series."""
    with worker("sweep", database_url=database_url) as (client, process):
        until(lambda: answers(client, "/readyz") == 200, "the sweep is ready")
        until(lambda: 'pqs_sweep_lag_seconds{kind="ack"}' in client.get("/metrics").text, "it has swept")
        process.terminate()
        assert process.wait(PATIENCE) == 0


async def test_a_port_in_use_is_named(database_url: str) -> None:
    """A worker whose port is in use ends with one line that names it and the options for another one."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        said = refusal(pqs("sweep", database_url=database_url, metrics_port=port))
    assert said == (
        f"pqs: cannot listen on 127.0.0.1 port {port}: it is already in use; choose another with --metrics-host and "
        "--metrics-port"
    )
