"""The service as a process: started, stopped, killed, and started again."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from app.embedded.postgres import EmbeddedPostgres, running_url
from tests.making import NODE, Json, event_json, life, node
from tests.processes import PATIENCE, Service, command_lines, gone, postgres_pid, serving, starting, until

NDJSON = {"content-type": "application/x-ndjson"}
NOWHERE = "postgresql://postgres@127.0.0.1:1/nowhere"  # nothing listens there

Ending = Callable[[Service], None]


@pytest.fixture(autouse=True)
def nothing_is_left(data_dir: Path, tmp_path: Path) -> Iterator[None]:
    """After each test no PostgreSQL runs in its data directory, and its services have left no temporary file."""
    yield
    left_running = running_url(data_dir) is not None
    if left_running:
        with EmbeddedPostgres(data_dir):
            pass
    assert not left_running
    assert list(tmp_path.glob("tmp/*")) == []


# Its tests are no coroutines, and some use a database of their own.
pytestmark = pytest.mark.usefixtures("anyio_backend")


def end_at_the_terminal(service: Service) -> None:
    """Press Ctrl-C."""
    service.press_ctrl_c()


def end_by_a_supervisor(service: Service) -> None:
    """Send SIGTERM."""
    service.signal(signal.SIGTERM)


def end_with_the_terminal(service: Service) -> None:
    """Close its terminal."""
    os.killpg(service.pid, signal.SIGHUP)


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Suspend a process for a while, so that it cannot answer."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def client_of_the_others(service: Service) -> Iterator[httpx.Client]:
    """A client connected to a worker that still answers: the kernel chooses the worker of a new connection."""
    for _ in range(100):
        with service.client() as client:
            try:
                client.get("/livez", timeout=0.3).raise_for_status()
            except httpx.TimeoutException:
                continue
            yield client
            return
    raise AssertionError("no worker answers")


def connections(pid: int) -> int:
    """The number of sockets that a process has open."""
    opened = 0
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            opened += descriptor.readlink().name.startswith("socket:")
    return opened


def states(client: httpx.Client) -> Json:
    """The number of entities in each state."""
    counts: Json = client.get("/v1/state-counts").raise_for_status().json()
    return counts


def rows(client: httpx.Client, domain: str = "registration") -> list[str]:
    """Every row of a domain, as text, in the order of entity ids."""
    answer = client.get("/v1/entities", params={"domain": domain}, headers={"accept": "application/x-ndjson"})
    return answer.raise_for_status().text.splitlines()


def value_of(client: httpx.Client, series: str) -> float:
    """The value of a metric series."""
    lines = client.get("/metrics").raise_for_status().text.splitlines()
    [value] = [line.removeprefix(series) for line in lines if line.startswith(f"{series} ")]
    return float(value)


def test_printed_lines_work_and_data_outlives_a_stop(data_dir: Path, tmp_path: Path) -> None:
    """The printed curl lines work; Ctrl-C or a closed terminal ends every process; the next service has the data."""
    with serving(tmp_path, data_dir=data_dir) as service:
        lines = [line for line in service.printed.splitlines() if line.startswith("  curl ")]
        answers = [
            json.loads(subprocess.run(line, shell=True, check=True, capture_output=True, timeout=30).stdout)
            for line in lines
        ]
        assert [answers[0]["outcome"], answers[1]["current_state"], answers[2]["total"]] == [
            "applied",
            "pending_registration",
            1,
        ]
        with service.client() as client:
            assert client.get("/docs").status_code == 200
            kept = rows(client)
        postgres = postgres_pid(data_dir)
        end_at_the_terminal(service)
        assert service.await_end() == 0
        assert service.printed.endswith("stopped\n")
        assert service.is_alone()
        assert gone(postgres)
    with serving(tmp_path, data_dir=data_dir) as service:
        with service.client() as client:
            assert rows(client) == kept
        postgres = postgres_pid(data_dir)
        end_with_the_terminal(service)
        assert service.await_end() == 0
        assert gone(postgres)


@pytest.mark.parametrize(("end", "workers"), [(end_at_the_terminal, 1), (end_by_a_supervisor, 2)])
def test_impatience_leaves_nothing_behind(end: Ending, workers: int, data_dir: Path, tmp_path: Path) -> None:
    """Repeated Ctrl-C and SIGTERM, however fast, end every process, PostgreSQL and workers included."""
    with serving(tmp_path, data_dir=data_dir, workers=workers) as service:
        with service.client() as client:
            client.get("/livez").raise_for_status()
        postgres = postgres_pid(data_dir)
        end(service)
        for number in itertools.cycle((signal.SIGINT, signal.SIGTERM)):
            with suppress(subprocess.TimeoutExpired):
                service.process.wait(0.05)
                break
            with suppress(ProcessLookupError):
                os.killpg(service.pid, number)
        assert service.await_end() == 0
        assert "Traceback" not in service.log
        assert gone(postgres)
        until(service.is_alone, "the workers end")


@pytest.mark.parametrize(
    ("reached", "number"),
    [
        ("service.lock", signal.SIGTERM),
        ("postgres.new", signal.SIGINT),
        ("postgres/postmaster.pid", signal.SIGTERM),
    ],
)
def test_stop_during_the_start(reached: str, number: signal.Signals, data_dir: Path, tmp_path: Path) -> None:
    """A service stopped during its start ends, and leaves no PostgreSQL running."""
    with starting(tmp_path, data_dir=data_dir) as service:
        until((data_dir / reached).exists, reached, poll=0.005)
        service.signal(number)
        assert service.await_end() == 0
        assert service.printed == "stopped\n"
        assert "Traceback" not in service.log
        assert service.is_alone()
    assert not [args for args in command_lines() if str(data_dir) in args]


@pytest.mark.parametrize("crash", [False, True], ids=["service", "service and PostgreSQL"])
def test_acknowledged_events_outlive_a_kill(crash: bool, data_dir: Path, tmp_path: Path) -> None:
    """After a kill -9 amid writes, the next service has every acknowledged event."""
    acknowledged: list[str] = []

    def write(service: Service) -> None:
        with service.client() as client, suppress(httpx.TransportError):
            for number in itertools.count():
                event = event_json("registration.initiated", 1, entity_id=node(number))
                if client.post("/v1/events", json=event).json().get("outcome") == "applied":
                    acknowledged.append(event["entity_id"])

    with serving(tmp_path, data_dir=data_dir) as service:
        writer = threading.Thread(target=write, args=[service])
        writer.start()
        try:
            until(lambda: len(acknowledged) >= 100, "a hundred events are acknowledged")
            postgres = postgres_pid(data_dir)
            if crash:
                os.kill(postgres, signal.SIGKILL)
        finally:
            service.signal(signal.SIGKILL)
            service.await_end()
            writer.join()
    assert gone(postgres) == crash
    with serving(tmp_path, data_dir=data_dir) as service, service.client() as client:
        assert (f"taking over the PostgreSQL (pid {postgres})" in service.log) != crash
        answer = client.post("/v1/entities/lookup", json={"entity_ids": acknowledged[:1000]}).json()
        assert answer["missing"] == []
        assert len(acknowledged) <= states(client)["total"] <= len(acknowledged) + 1


def test_stream_is_sent_again_after_a_kill(database_url: str, tmp_path: Path) -> None:
    """A stream cut by a kill -9 and sent again to the next service gives the same rows as one complete stream."""
    events = [event for number in range(600) for event in life(node(number))]
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    clean = [json.dumps(event | {"domain": "clean"}).encode() + b"\n" for event in events]

    def broken_off(service: Service) -> Iterator[bytes]:
        """Send the first half, and kill the service once it has committed some of it."""
        yield b"".join(lines[: len(lines) // 2])
        with service.client() as client:
            until(lambda: states(client)["total"], "a part is committed")
        service.signal(signal.SIGKILL)
        service.await_end()
        yield b"".join(lines[len(lines) // 2 :])

    with serving(tmp_path, database_url=database_url) as first, first.client() as client:  # noqa: SIM117 - it must start
        with pytest.raises(httpx.TransportError):
            client.post("/v1/events", content=broken_off(first), headers=NDJSON)
    with serving(tmp_path, database_url=database_url) as service, service.client() as client:
        assert 0 < states(client)["total"] < 600
        for again in (lines, clean):
            client.post("/v1/events", content=b"".join(again), headers=NDJSON).raise_for_status()
        expected = [row.replace('"domain":"clean"', '"domain":"registration"') for row in rows(client, "clean")]
        assert rows(client) == expected
        assert len(expected) == 600


def test_workers_share_settings_and_metrics_and_are_replaced(database_url: str, tmp_path: Path) -> None:
    """Both workers answer with the service's settings; a killed worker is replaced, and its counts are kept."""
    with serving(tmp_path, "--workers", 2, "--max-body", 2048, database_url=database_url) as service:
        one, two = service.await_workers(2)
        for busy in (one, two):  # both have begun to count
            with paused(busy), client_of_the_others(service) as client:
                client.get("/readyz").raise_for_status()
        for sequence, (busy, type_) in enumerate(
            [(one, "registration.initiated"), (two, "registration.accepted")], 1
        ):
            with paused(busy), client_of_the_others(service) as client:
                event = event_json(type_, sequence)
                assert client.post("/v1/events", json=event).json()["outcome"] == "applied"
                assert client.post("/v1/events", json=event | {"data": {"x": "x" * 2048}}).status_code == 413
        applied = [
            f'pqs_events_total{{outcome="applied",source="http",type="registration.{each}"}}'
            for each in ("initiated", "accepted")
        ]
        refused = (
            'http_server_request_duration_seconds_count{http_request_method="POST",'
            'http_response_status_code="413",http_route="/v1/events"}'
        )
        with service.client() as client:
            assert [value_of(client, each) for each in (*applied, refused)] == [1, 1, 2]
            minutes = client.get("/v1/overview").json()["operations"]["minutes"]
            assert sum(minute["applied"] for minute in minutes) == 2
        os.kill(one, signal.SIGKILL)
        with service.client() as client:
            client.get("/readyz").raise_for_status()
        [new] = set(service.await_workers(2, without=one)) - {two}
        with paused(two), client_of_the_others(service) as client:
            assert states(client)["total"] == 1
            assert [value_of(client, each) for each in (*applied, refused)] == [1, 1, 2]
        service.signal(signal.SIGTERM)
        assert service.await_end() == 0
        assert gone(new)
        until(service.is_alone, "the workers end")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel shares connections out on Linux alone")
def test_workers_share_connections(database_url: str, tmp_path: Path) -> None:
    """Many connections at once spread over the workers; a killed worker's connections wait for the next one."""
    with serving(tmp_path, workers=2, database_url=database_url) as service, ExitStack() as stack:
        workers = service.await_workers(2)
        before = list(map(connections, workers))
        url = httpx.URL(service.url)
        opened = [stack.enter_context(socket.create_connection((url.host, url.port))) for _ in range(64)]
        taken: list[int] = []

        def all_are_taken() -> bool:
            taken[:] = [connections(pid) - had for pid, had in zip(workers, before, strict=True)]
            return sum(taken) >= len(opened)

        until(all_are_taken, "the workers take the connections")
        assert min(taken) >= 8  # by chance that is fewer once in 10^10 times
        os.kill(workers[0], signal.SIGKILL)
        for _ in range(16):
            with service.client() as client:
                client.get("/livez").raise_for_status()
        assert workers[0] not in service.await_workers(2, without=workers[0])


def test_all_workers_are_replaced_without_a_gap(database_url: str, tmp_path: Path) -> None:
    """SIGHUP replaces the workers one by one; requests are answered meanwhile; the number of workers stays."""
    with serving(tmp_path, workers=2, database_url=database_url) as service:
        before = set(service.await_workers(2))
        for number in (signal.SIGTTOU, signal.SIGTTIN, signal.SIGHUP):
            service.signal(number)
            time.sleep(0.1)  # so that they are taken in this order

        def replaced() -> bool:
            with service.client() as client:
                client.get("/livez").raise_for_status()
            now = set(service.workers())
            return len(now) == 2 and now.isdisjoint(before)

        until(replaced, "both workers are replaced")
        for _ in range(8):
            with service.client() as client:
                client.get("/readyz").raise_for_status()


def test_a_restart_that_fails_leaves_the_workers(database_url: str, tmp_path: Path) -> None:
    """If the first new worker does not become ready, the restart is abandoned, and the old workers go on."""
    with serving(tmp_path, workers=2, database_url=database_url) as service:
        before = service.await_workers(2)
        [metrics] = service.temporary.glob("pqs-metrics-*")
        hidden = metrics.rename(tmp_path / "hidden")  # no worker starts without it
        kept: list[str] = []

        def is_given_up() -> bool:
            found = re.findall(r"keeping worker \[(\d+)\] and aborting", service.log)
            new, kept[:] = len(found) > len(kept), found
            return new

        for _ in range(2):
            service.signal(signal.SIGHUP)
            until(is_given_up, "the restart is given up")
        assert len(set(kept)) == 1  # each time at the first worker
        hidden.rename(metrics)
        assert service.workers() == before
        with service.client() as client:
            client.get("/readyz").raise_for_status()


def test_breaker_of_a_dead_worker_is_not_reported(tmp_path: Path) -> None:
    """The metrics no longer count the open breaker of a worker that was killed."""
    series = 'pqs_breaker_open{database="primary"}'
    with serving(tmp_path, workers=2, database_url=NOWHERE) as service:
        one, two = service.await_workers(2)
        with paused(two), client_of_the_others(service) as client:
            for _ in range(5):
                assert client.get(f"/v1/entities/{NODE}").status_code == 503
            assert value_of(client, series) == 1
        os.kill(one, signal.SIGKILL)
        service.await_workers(2, without=one)
        with service.client() as client:
            assert value_of(client, series) == 0


def test_workers_end_with_a_killed_service(database_url: str, tmp_path: Path) -> None:
    """When the service itself is killed its workers end too, which frees the port for the next service."""
    with serving(tmp_path, workers=2, database_url=database_url) as service:
        service.await_workers(2)
        with service.client() as client:
            client.get("/readyz").raise_for_status()
            service.signal(signal.SIGKILL)
            service.await_end()
        until(service.is_alone, "the workers end")
        url = httpx.URL(service.url)
        with socket.create_server((url.host, url.port or 0)):
            pass


def test_the_service_ends_with_its_postgresql(data_dir: Path, tmp_path: Path) -> None:
    """A service whose own PostgreSQL is killed ends with status 1 and logs the reason."""
    with serving(tmp_path, data_dir=data_dir) as service:
        os.kill(postgres_pid(data_dir), signal.SIGKILL)
        assert service.process.wait(PATIENCE) == 1
        assert "has ended; postgres.log there says why" in service.log
