"""The cost of keys: the hot calls of a service that requires a key, compared with one that does not."""

import http.client
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.bench import MAIN, Bench
from benchmarks.contenders import LeftOutError, start_ours
from benchmarks.load import wrk
from benchmarks.machine import Child, Machine
from benchmarks.report import Row, compared
from benchmarks.throughput import LOOKUP_CONNECTIONS, POST_CONNECTIONS, RATE
from benchmarks.workflows import CONNECTIONS, fill

COSTS = 0.98  # of the speed without keys
SCOPES = ("events:write", "entities:read", "workflows:read", "workflows:write")
NO_LIMIT = "1e9"  # units a second: wrk sends as one principal what many callers would
KEY_TIMEOUT = 60.0  # seconds


def auth(bench: Bench) -> list[Row]:
    """Lookups, heartbeats and commits, each with a checked key and without a key."""
    machine, source = bench.machine, bench.source
    key = _key(machine)
    with _serving(machine) as ports:
        tokens = {"keys": key, "open": ""}

        def ask(what: str, connections: int, name: str) -> float:
            load = partial(
                wrk,
                machine,
                ports[name],
                what,
                source,
                connections=connections,
                seconds=bench.seconds,
                token=tokens[name],
            )
            if what == "commit":
                fill(machine)
            return bench.written(load) if what == "post" else load().rate

        rows = []
        calls = {"lookup": LOOKUP_CONNECTIONS, "post": POST_CONNECTIONS, "commit": CONNECTIONS}
        for what, connections in calls.items():
            contenders = {name: partial(ask, what, connections, name) for name in ports}
            bench.warm(contenders)
            measured = bench.turns(contenders, targets={"open": COSTS})
            said = f"{what} with a key, {connections} connections"
            rows.append(compared(said, measured["keys"], "without keys", measured["open"], RATE, COSTS))
    return rows


def _key(machine: Machine) -> str:
    """A new key for the hot calls."""
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    reach = ["--domain", "*", "--workflow-prefix", "*", "--rate", NO_LIMIT, "--burst", NO_LIMIT, "--expires", "1d"]
    named = f"bench-{machine.ask(MAIN, 'SELECT count(*) FROM api_keys')}"
    command = [sys.executable, "-m", "app", "keys", "create", named, *scopes, *reach]
    said = machine.run([*command, "--database-url", machine.url(MAIN)], timeout=KEY_TIMEOUT)
    return next(word for word in said.split() if word.startswith("pqs_"))


@contextmanager
def _serving(machine: Machine) -> Iterator[dict[str, int]]:
    """The ports of both services. Raises LeftOutError if the service that should require keys does not."""
    children: list[Child] = []
    ports: dict[str, int] = {}
    try:
        for name, posture in (("keys", "required"), ("open", "loopback")):
            child, ports[name] = start_ours(machine, MAIN, PQS_AUTH=posture)
            children.append(child)
            child.answers(ports[name], "/readyz")
            child.rest()
        connection = http.client.HTTPConnection("127.0.0.1", ports["keys"], timeout=KEY_TIMEOUT)
        connection.request("GET", "/v1/state-counts")
        if connection.getresponse().status != http.client.UNAUTHORIZED:
            raise LeftOutError("auth is left out: this service answers without a key in the posture `required`")
        connection.close()
        yield ports
    finally:
        for each in children:
            each.stop()
