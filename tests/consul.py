"""A small Consul for tests: agents with one catalog, over real HTTP, that take what the API documents, no more.

https://developer.hashicorp.com/consul/api-docs: agent/service, agent/check, catalog, health. Each agent enters its
services in the catalog when they change and at each `sync`, as anti-entropy does. Time passes by `pass_time`.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

from app.outbound.consul import Consul

HANDLED = 60.0  # seconds; only a test that fails waits that long

# The fields that a registration may have, and the type of each.
FIELDS: dict[str, type] = {
    "ID": str,
    "Name": str,
    "Tags": list,
    "Address": str,
    "TaggedAddresses": dict,
    "Meta": dict,
    "Namespace": str,
    "Port": int,
    "Kind": str,
    "Proxy": dict,
    "Connect": dict,
    "Check": dict,
    "Checks": list,
    "EnableTagOverride": bool,
    "Weights": dict,
    "Partition": str,
    "Locality": dict,
}
# The same for a TTL check.
CHECK_FIELDS: dict[str, type] = {
    "CheckID": str,
    "Name": str,
    "Notes": str,
    "TTL": str,
    "Status": str,
    "DeregisterCriticalServiceAfter": str,
}
STATUSES = {"passing", "warning", "critical"}
DURATION = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>ms|s|m|h)")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LEAST_UNTIL_REMOVED = 60.0  # seconds
HIGHEST_PORT = 65_535
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")  # a DNS label
META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
MOST_META, LONGEST_META = 64, 512  # entries, and bytes of a value
REGISTER, DEREGISTER = "/v1/agent/service/register", "/v1/agent/service/deregister/"
UPDATE = "/v1/agent/check/update/"
CATALOG_SERVICES, CATALOG_DEREGISTER = "/v1/catalog/services", "/v1/catalog/deregister"
HEALTH_SERVICE = "/v1/health/service/"
FILTER = re.compile(r'(?P<field>Service\.Meta|ServiceMeta)\.(?P<key>[A-Za-z0-9_-]+) == "(?P<value>[^"]*)"')
HANGS = 30.0  # seconds at most that an agent says nothing

Json = dict[str, Any]


def duration(text: str) -> float:
    """The seconds of a duration as Go writes it. Raises ValueError."""
    found = DURATION.fullmatch(text)
    if found is None:
        raise ValueError(f"time: invalid duration {text!r}")
    return float(found["number"]) * SECONDS[found["unit"]]


def faults_of(service: Json) -> list[str]:
    """What the documentation does not allow in a registration."""
    wrong = [f"{name} is {value!r}" for name, value in service.items() if type(value) is not FIELDS.get(name)]
    wrong += [f"tag {tag!r}" for tag in service.get("Tags", []) if not isinstance(tag, str)]
    meta = service.get("Meta", {})
    wrong += [f"meta {key!r}" for key in meta if not META_KEY.fullmatch(key)]
    wrong += [f"meta {v!r}" for v in meta.values() if not isinstance(v, str) or len(v.encode()) > LONGEST_META]
    if not NAME.fullmatch(service.get("Name", "")):
        wrong.append(f"the name {service.get('Name')!r} cannot be found by DNS")
    if len(meta) > MOST_META:
        wrong.append("too much meta")
    if service.get("Address") in {"0.0.0.0", "::", "[::]"}:
        wrong.append("Invalid service address")
    if not 0 <= service.get("Port", 0) <= HIGHEST_PORT:
        wrong.append(f"port {service['Port']}")
    check = service.get("Check", {})
    wrong += [
        f"check {name} is {value!r}" for name, value in check.items() if type(value) is not CHECK_FIELDS.get(name)
    ]
    if check.get("Status", "critical") not in STATUSES:
        wrong.append(f"check status {check['Status']!r}")
    try:
        duration(check.get("TTL", ""))
        if duration(check.get("DeregisterCriticalServiceAfter", "1m")) < LEAST_UNTIL_REMOVED:
            wrong.append("removed too soon")
    except ValueError as error:
        wrong.append(str(error))
    return wrong


class Catalog:
    """What all agents of a cluster have entered: the services of each agent, and whether it is up."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Json]] = {}
        self.statuses: dict[tuple[str, str], str] = {}  # of the checks, by agent and service
        self.lock = threading.RLock()  # of the agents as well: each connection has a thread
        self.down: set[str] = set()
        self.leaderless = False  # the servers have lost their quorum: agents answer, the catalog does not

    def marked(self, filter_: str, field: str) -> list[tuple[str, Json]]:
        """The services that a filter finds (without one: all), with their agents.

        Raises ValueError for a filter that is not understood.
        """
        wanted = FILTER.fullmatch(filter_)
        if filter_ and (wanted is None or wanted["field"] != field):
            raise ValueError(f"Failed to create boolean expression evaluator for {filter_!r}")
        return [
            (agent, service)
            for agent, services in self.entries.items()
            for service in services.values()
            if wanted is None or service["Meta"].get(wanted["key"]) == wanted["value"]
        ]

    def ids(self) -> list[str]:
        """The ids of the services at agents that are up, one for each copy, in their order."""
        return sorted(id_ for agent, entries in self.entries.items() if agent not in self.down for id_ in entries)


class Agent:
    """What an agent knows, and how it behaves."""

    def __init__(self, name: str = "agent-1", catalog: Catalog | None = None) -> None:
        self.url = ""
        self.name = name
        self.catalog = catalog or Catalog()
        self.services: dict[str, Json] = {}
        self.statuses: dict[str, str] = {}  # of the checks, by service
        self.registered_with: dict[str, str | None] = {}  # the token of each service's registration
        self.ages: dict[str, float] = {}  # seconds since a check was last updated, or became critical
        self.requests = 0
        self.registrations = 0
        self.updates: list[str] = []  # the services whose checks were updated
        self.wrong: list[str] = []  # what the documentation does not allow
        self.answers: list[int] = []  # statuses of the next answers, in place of what the agent would say
        self.forbidden: set[str] = set()  # ids of services that nobody has the right to register
        self.tokens: set[str] | None = None  # those that have the right to register; None: nobody needs one
        self.hidden: set[str] = set()  # ids of services that nobody has the right to read
        self.last_path = ""
        self.takes = 0.0  # seconds for an answer
        self.unknown: tuple[int, str] | None = None  # what an old release says of an unknown service or check
        self.page: str | None = None  # what a proxy in front says to each question
        self.silent = False  # says nothing until `released`
        self.released = threading.Event()

    # --- What happens to an agent ---

    def wipe(self) -> None:
        """Lose everything, and say so to the catalog."""
        self.services, self.statuses, self.ages = {}, {}, {}
        self.sync()

    def sync(self) -> None:
        """Make the catalog equal to what this agent has, as far as the tokens of the registrations still count.

        An agent enters a service and its check with the token of its registration, and removes it with its own.
        """
        entries = self.catalog.entries.setdefault(self.name, {})
        for id_ in set(entries) - set(self.services):
            entries.pop(id_)
        for id_, service in self.services.items():
            if self.tokens is None or self.registered_with[id_] in self.tokens:
                entries[id_] = service
                self.catalog.statuses[self.name, id_] = self.statuses[id_]

    def pass_time(self, seconds: float) -> None:
        """Let checks that nobody has renewed become critical, and remove services whose checks have long been."""
        for id_, service in list(self.services.items()):
            self.ages[id_] += seconds
            check = service["Check"]
            if self.statuses[id_] != "critical" and self.ages[id_] > duration(check["TTL"]):
                self.statuses[id_] = "critical"
                self.ages[id_] -= duration(check["TTL"])
            after = duration(check["DeregisterCriticalServiceAfter"])
            if self.statuses[id_] == "critical" and self.ages[id_] > after:
                self._forget(id_)
            elif id_ in self.catalog.entries.get(self.name, {}):
                self.sync_check(id_)

    def sync_check(self, id_: str) -> None:
        """Enter the status of a check in the catalog."""
        if self.tokens is None or self.registered_with[id_] in self.tokens:
            self.catalog.statuses[self.name, id_] = self.statuses[id_]

    # --- Requests ---

    def take(self, method: str, path: str, body: bytes, token: str | None = None) -> tuple[int, str]:
        """The answer to a request."""
        self.requests += 1
        self.last_path, query = path, parse_qs(urlsplit(path).query, keep_blank_values=True)
        path = path.partition("?")[0]
        if self.tokens is not None and token not in self.tokens:
            return 403, "Permission denied: token with AccessorID lacks permission 'service:write'"
        if self.takes:
            time.sleep(self.takes)
        if self.silent:
            self.released.wait(HANGS)
        if self.answers:
            return self.answers.pop(0), "as the test wants it"
        if method == "GET" and self.page is not None:
            return 200, self.page
        with self.catalog.lock:
            return self._answer(method, path, query, body, token)

    def _answer(
        self, method: str, path: str, query: dict[str, list[str]], body: bytes, token: str | None
    ) -> tuple[int, str]:
        if method == "GET":
            return self._read(path, query.get("filter", [""])[0], passing="passing" in query)
        if method != "PUT":
            return 405, f"method {method} not allowed"
        if path == REGISTER:
            return self._register(body, token)
        if path == CATALOG_DEREGISTER:
            return self._strike(json.loads(body))
        if path.startswith(DEREGISTER):
            return self._deregister(unquote(path.removeprefix(DEREGISTER)))
        if path.startswith(UPDATE):
            return self._update(unquote(path.removeprefix(UPDATE)), json.loads(body))
        return 404, "no such path"

    def _register(self, body: bytes, token: str | None) -> tuple[int, str]:
        self.registrations += 1
        service: Json = json.loads(body)
        wrong = faults_of(service)
        if wrong:
            self.wrong += wrong
            return 400, "; ".join(wrong)
        if service["ID"] in self.forbidden:
            return 403, "Permission denied"
        id_ = service["ID"]
        self.services[id_], self.registered_with[id_] = service, token
        # A check that is there keeps its status: the agent restores it from before the registration.
        self.statuses.setdefault(id_, service["Check"].get("Status") or "critical")
        self.ages.setdefault(id_, 0.0)
        self.sync()
        return 200, ""

    def _deregister(self, id_: str) -> tuple[int, str]:
        if id_ not in self.services:
            return self.unknown or (
                404,
                f'Unknown service ID "{id_}". Ensure that the service ID is passed, not the service name.',
            )
        self._forget(id_)
        return 200, ""

    def _forget(self, id_: str) -> None:
        self.services.pop(id_)
        self.statuses.pop(id_)
        self.ages.pop(id_)
        self.sync()

    def _update(self, check_id: str, body: Json) -> tuple[int, str]:
        if body.get("Status") not in STATUSES or body.keys() - {"Status", "Output"}:
            self.wrong.append(f"update {body!r}")
            return 400, f"Invalid check status: {body!r}"
        id_ = next((id_ for id_, each in self.services.items() if each["Check"]["CheckID"] == check_id), None)
        if id_ is None:
            said = f'Unknown check ID "{check_id}". Ensure that the check ID is passed, not the check name.'
            return self.unknown or (404, said)
        self.statuses[id_], self.ages[id_] = body["Status"], 0.0
        self.updates.append(id_)
        self.sync_check(id_)
        return 200, ""

    def _strike(self, body: Json) -> tuple[int, str]:
        if body.keys() - {"Datacenter", "Node", "Address", "CheckID", "ServiceID", "Namespace"} or not body["Node"]:
            self.wrong.append(f"catalog {body!r}")
            return 400, "wrong"
        self.catalog.entries.get(body["Node"], {}).pop(body["ServiceID"], None)
        return 200, "true"

    def _read(self, path: str, filter_: str, *, passing: bool) -> tuple[int, str]:
        if self.catalog.leaderless:
            return 500, "No cluster leader"
        try:
            if path == CATALOG_SERVICES:
                found: dict[str, list[str]] = {}
                for _, service in self.catalog.marked(filter_, "ServiceMeta"):
                    found.setdefault(service["Name"], []).extend(service.get("Tags", []))
                return 200, json.dumps(found)
            if path.startswith(HEALTH_SERVICE):
                name = unquote(path.removeprefix(HEALTH_SERVICE))
                instances = [
                    self._instance(agent, service)
                    for agent, service in self.catalog.marked(filter_, "Service.Meta")
                    if service["Name"].lower() == name.lower() and service["ID"] not in self.hidden
                ]
                return 200, json.dumps([each for each in instances if not passing or _passes(each)])
        except ValueError as error:
            self.wrong.append(str(error))
            return 400, str(error)
        return 404, "no such path"

    def _instance(self, agent: str, service: Json) -> Json:
        status = self.catalog.statuses[agent, service["ID"]]
        return {
            "Node": {"Node": agent, "Address": "127.0.0.1"},
            "Service": {
                "ID": service["ID"],
                "Service": service["Name"],
                "Tags": service.get("Tags") or None,
                "Address": service.get("Address", ""),
                "Port": service.get("Port", 0),
                "Meta": service.get("Meta"),
            },
            "Checks": [
                {"CheckID": "serfHealth", "Status": "critical" if agent in self.catalog.down else "passing"},
                {"CheckID": service["Check"]["CheckID"], "Status": status},
            ],
        }


def _passes(instance: Json) -> bool:
    return all(check["Status"] == "passing" for check in instance["Checks"])


class Cluster:
    """Agents behind one address, as a balancer has them: it leads each new connection to the next one that is up."""

    def __init__(self, agents: int) -> None:
        self.url = ""
        self.catalog = Catalog()
        self.agents = [Agent(f"agent-{number}", self.catalog) for number in range(1, agents + 1)]
        self._turn = count()

    def next_agent(self) -> Agent:
        """The agent of a new connection."""
        up = [agent for agent in self.agents if agent.name not in self.catalog.down]
        return up[next(self._turn) % len(up)]

    def passing(self) -> list[str]:
        """The ids of the services that a client of Consul finds, one for each copy."""
        return sorted(
            id_
            for agent in self.agents
            if agent.name not in self.catalog.down
            for id_ in self.catalog.entries.get(agent.name, {})
            if agent.statuses.get(id_) == "passing"
        )


@contextmanager
def consul(tls: ssl.SSLContext | None = None) -> Iterator[Agent]:
    """An agent on a free port, over TLS if a context is given."""
    agent = Agent()
    with listening(lambda: agent, [agent], tls) as url:
        agent.url = url
        yield agent


@contextmanager
def cluster(agents: int) -> Iterator[Cluster]:
    """Agents behind one address, each with an address of its own as well."""
    some = Cluster(agents)
    with ExitStack() as stack:
        for agent in some.agents:
            agent.url = stack.enter_context(listening(partial(_same, agent), [agent]))
        some.url = stack.enter_context(listening(some.next_agent, some.agents))
        yield some


def _same(agent: Agent) -> Agent:
    return agent


@contextmanager
def listening(choose: Callable[[], Agent], agents: list[Agent], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose connections are each answered by the agent that is chosen at their begin."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            self.agent = choose()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, said = 0, ""
            if self.agent.name not in self.agent.catalog.down:
                status, said = self.agent.take(self.command, self.path, body, self.headers.get("X-Consul-Token"))
            if status == 0:  # hangs up without a word
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(said.encode())))
            if self.agent.hidden and self.command == "GET":
                self.send_header("X-Consul-Results-Filtered-By-ACLs", "true")
            self.end_headers()
            self.wfile.write(said.encode())

        do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the base class looks for these names

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Ignore clients that disconnect."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:  # the handshake is in the thread of the connection, with its first read
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            for agent in agents:
                agent.released.set()
            server.shutdown()
            thread.join()


# --- A real one ----------------------------------------------------------------------------------------------------


@contextmanager
def some_consul() -> Iterator[str]:
    """The address of a Consul: the agent that TEST_CONSUL names, else a program `consul`, else the server above."""
    if given := os.environ.get("TEST_CONSUL"):
        yield given
    elif (program := shutil.which("consul")) is not None:
        with program_of(program) as url:
            yield url
    else:
        with consul() as agent:
            yield agent.url
            assert agent.wrong == []


@contextmanager
def program_of(program: str) -> Iterator[str]:
    """A real agent in development mode, on loopback and free ports, which keeps nothing."""
    with ExitStack() as taken:
        http, lan, server = (free_port(taken) for _ in range(3))
    options = [f"-http-port={http}", f"-serf-lan-port={lan}", f"-server-port={server}", "-serf-wan-port=-1"]
    options += ["-dns-port=-1", "-grpc-port=-1", "-grpc-tls-port=-1", "-client=127.0.0.1", "-bind=127.0.0.1"]
    with subprocess.Popen([program, "agent", "-dev", *options], stdout=subprocess.DEVNULL) as process:
        try:
            url, until = f"http://127.0.0.1:{http}", time.monotonic() + HANGS
            while not leads(url):
                assert process.poll() is None, "the agent has ended"
                assert time.monotonic() < until, "the agent does not begin to work"
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def leads(url: str) -> bool:
    """Whether there is an agent that has a leader."""
    try:
        return bool(httpx.get(f"{url}/v1/status/leader", trust_env=False).json())
    except (httpx.HTTPError, ValueError):
        return False


def free_port(taken: ExitStack) -> int:
    """A port that nobody has, once `taken` is closed."""
    listener = taken.enter_context(socket.create_server(("127.0.0.1", 0)))
    port: int = listener.getsockname()[1]
    return port


@asynccontextmanager
async def handler(url: str, **options: object) -> AsyncIterator[Consul]:
    """The handler for the agent at an address, without pauses between attempts."""
    given = {"backoff": timedelta(0), **options}
    made = Consul(url, **given)  # type: ignore[arg-type]  # each option has its own type
    try:
        async with asyncio.timeout(HANDLED):
            yield made
    finally:
        await made.close()
