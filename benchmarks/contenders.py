"""The contenders: the service and its peers, with equal numbers of processes, on the same database.

Before the measurements all contenders get the same requests, and their answers must mean the same.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from benchmarks.load import Answer, Client
from benchmarks.machine import BenchmarkError, Child, Machine, free_port
from benchmarks.rows import Event, Source

PEERS = Path(__file__).resolve().parent / "peers"
NODE = PEERS / "node"
NPM_TIMEOUT = 180.0  # seconds
GO = PEERS / "go"
GO_DEFAULT = "/usr/local/go/bin/go"  # where Go's own archive puts it, which is not always on the path
GO_TIMEOUT = 300.0  # seconds: a first build compiles net/http and pgx
WORKERS = 2
EMPTY = "empty"  # the peer whose answers mean nothing
COMPARED = 20  # entities whose answers are compared


class LeftOutError(Exception):
    """A contender or a part cannot be measured here; the message gives the reason."""


def need_node(machine: Machine) -> str:
    """The path of node, with the peer's packages installed. Raises LeftOutError if there is no node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise LeftOutError("node is left out: Node.js and npm are not installed here")
    stamp = NODE / "node_modules" / ".package-lock.json"
    if not stamp.exists() or stamp.stat().st_mtime < (NODE / "package.json").stat().st_mtime:
        install: list[str | Path] = [
            npm,
            "install",
            "--prefix",
            NODE,
            "--no-package-lock",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
        ]
        try:
            machine.run(install, timeout=NPM_TIMEOUT)
        except BenchmarkError as error:
            raise LeftOutError(f"node is left out: npm could not install it: {error}") from None
        stamp.touch()
    return node


def need_go(machine: Machine) -> Path:
    """The peer's program, built into the run's folder. Raises LeftOutError if there is no Go."""
    go, program = shutil.which("go") or shutil.which(GO_DEFAULT), machine.folder / "peer-go"
    if go is None:
        raise LeftOutError("go is left out: Go is not installed here")
    if not program.exists():
        try:
            machine.run([go, "build", "-C", GO, "-mod=readonly", "-o", program, "."], timeout=GO_TIMEOUT)
        except BenchmarkError as error:
            raise LeftOutError(f"go is left out: it could not be built: {error}") from None
    return program


def knows_batching(machine: Machine) -> bool:
    """Whether batching can be switched off."""
    return "PQS_BATCHING" in machine.run([sys.executable, "-m", "app", "serve", "--help"], timeout=60)


def start_as_installed(
    machine: Machine, database: str, *, workers: int = WORKERS, **environment: str
) -> tuple[Child, int]:
    """Start the service with its default settings; it logs into a file."""
    port = free_port()
    command = [sys.executable, "-m", "app", "serve", "--port", str(port), "--workers", str(workers)]
    return machine.spawn("ours", command, PQS_DATABASE_URL=machine.url(database), **environment), port


def start_ours(machine: Machine, database: str, *, workers: int = WORKERS, **environment: str) -> tuple[Child, int]:
    """Start the service without an access log, like all contenders."""
    return start_as_installed(machine, database, workers=workers, **({"PQS_LOG_LEVEL": "warning"} | environment))


def start(machine: Machine, name: str, database: str) -> tuple[Child, int]:
    """Start a contender by its name. Raises LeftOutError if that is impossible here."""
    port = free_port()
    match name:
        case "ours":
            return start_ours(machine, database)
        case "unjoined":
            return start_ours(machine, database, PQS_BATCHING="false")
        case "node":
            environment = {"SOCKET_DIR": machine.socket_dir, "DATABASE": database, "PORT": str(port)}
            command: list[str | Path] = [need_node(machine), NODE / "server.mjs"]
            return machine.spawn(name, command, PROCESSES=str(WORKERS), NODE_ENV="production", **environment), port
        case "go":
            environment = {"SOCKET_DIR": machine.socket_dir, "DATABASE": database, "PORT": str(port)}
            return machine.spawn(name, [need_go(machine)], GOMAXPROCS=str(WORKERS), **environment), port
        case _:
            command = [sys.executable, "-m", "uvicorn", f"benchmarks.peers.{name}.service:app"]
            command += ["--port", str(port), "--workers", str(WORKERS), "--loop", "uvloop", "--http", "httptools"]
            command += ["--no-access-log", "--log-level", "warning"]
            return machine.spawn(name, command, DATABASE_URL=machine.url(database)), port


@contextmanager
def serving(
    machine: Machine, source: Source, database: str, names: list[str], notes: list[str]
) -> Iterator[dict[str, int]]:
    """The ports of the contenders that started, by name, after a check that their answers mean the same."""
    children: list[Child] = []
    ports: dict[str, int] = {}
    try:
        for name in names:
            try:
                child, port = start(machine, name, database)
            except LeftOutError as error:
                notes.append(str(error))
                continue
            children.append(child)
            child.answers(port, "/readyz")
            child.rest()
            ports[name] = port
        _check_alike({name: port for name, port in ports.items() if name != EMPTY}, source)
        yield ports
    finally:
        for child in children:
            child.stop()


def _check_alike(ports: dict[str, int], source: Source) -> None:
    """Raise BenchmarkError unless all answers to the lookup and the heartbeat agree, field by field."""
    clients = {name: Client(port) for name, port in ports.items()}
    try:
        for place in range(COMPARED):
            entity_id = source.known(place)
            found = {name: client.get(f"/v1/entities/{entity_id}") for name, client in clients.items()}
            _same("lookup", {name: {"ETag": answer.etag, **answer.json()} for name, answer in found.items()})
            version = next(iter(found.values())).json()["version"]
            _check_writes(clients, entity_id, int(str(version)), source)
        unknown = {
            name: client.get(f"/v1/entities/{'0' * 8}-0000-4000-8000-{'f' * 12}") for name, client in clients.items()
        }
        _same("unknown entity", {name: {"status": answer.status} for name, answer in unknown.items()})
    finally:
        for client in clients.values():
            client.__exit__()


def _check_writes(clients: dict[str, Client], entity_id: str, version: int, source: Source) -> None:
    """Check that each contender's write is seen by all, and that each detects repeats and late events."""
    told: dict[str, dict[str, object]] = {}
    for name, client in clients.items():
        first = source.stamps(2)
        late, event = (Event(entity_id, stamp, fresh=False) for stamp in (first, first + 1))
        applied, again, stale = (_send(client, each) for each in (event, event, late))
        version += 1
        wanted: dict[str, object] = {
            "event_id": event.event_id,
            "outcome": "applied",
            "reason": None,
            "version": version,
        }
        wanted |= {"stands_at": {"sequence": event.stamp}, "entity_id": entity_id}
        answered = applied.json()
        wrong = {key: answered.get(key) for key, value in wanted.items() if answered.get(key) != value}
        if wrong:
            raise BenchmarkError(f"{name} answered a heartbeat with {wrong} instead of {wanted}")
        seen = {other: reader.get(f"/v1/entities/{entity_id}").json() for other, reader in clients.items()}
        _same(f"lookup after a heartbeat to {name}", seen)
        row = next(iter(seen.values()))
        if row["last_applied_sequence"] != event.stamp or _meaning(row["updated_at"]) != _meaning(event.occurred_at):
            raise BenchmarkError(f"{name} wrote {row} for {event.json()}")
        told[name] = {
            "fields": sorted(answered),
            "state": answered["current_state"],
            "again": again.json()["outcome"],
            "stale": stale.json()["outcome"],
        }
    _same("heartbeat", told)


def _send(client: Client, event: Event) -> Answer:
    return client.post("/v1/events", event.json().encode())


def _same(what: str, answers: dict[str, dict[str, object]]) -> None:
    meanings = {name: {key: _meaning(value) for key, value in answer.items()} for name, answer in answers.items()}
    (first, expected), *others = meanings.items()
    for name, meaning in others:
        if meaning != expected:
            keys = {key for key in expected | meaning if expected.get(key) != meaning.get(key)}
            shown = json.dumps({by: {key: str(answers[by].get(key)) for key in keys} for by in (first, name)})
            raise BenchmarkError(f"{what}: {first} and {name} do not answer alike: {shown}")


def _meaning(value: object) -> object:
    """The value with times normalised, as a time means the same in any spelling."""
    if isinstance(value, str) and value[4:5] == "-" and "T" in value:
        return datetime.fromisoformat(value)
    return value
