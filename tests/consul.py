"""A small Consul agent for tests: a real HTTP server that takes what the agent API documents, and nothing else.

https://developer.hashicorp.com/consul/api-docs/agent/service
"""

import json
import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

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
META_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
MOST_META, LONGEST_META = 64, 512  # entries, and characters of a value
REGISTER, DEREGISTER = "/v1/agent/service/register", "/v1/agent/service/deregister/"
HANGS = 30.0  # seconds at most that an agent says nothing

Json = dict[str, Any]


class Agent:
    """What the agent knows, and how it behaves."""

    def __init__(self) -> None:
        self.url = ""
        self.services: dict[str, Json] = {}
        self.requests = 0
        self.wrong: list[str] = []  # what the documentation does not allow
        self.answers: list[int] = []  # statuses of the next answers, in place of what the agent would say
        self.forbidden: set[str] = set()  # ids of services that nobody has the right to register
        self.tokens: set[str] | None = None  # those that have the right to register; None: nobody needs one
        self.last_path = ""
        self.takes = 0.0  # seconds for an answer
        self.silent = False  # says nothing until `released`
        self.released = threading.Event()

    def take(self, method: str, path: str, body: bytes, token: str | None = None) -> tuple[int, str]:
        """The answer to a request."""
        self.requests += 1
        self.last_path, path = path, path.partition("?")[0]
        if self.tokens is not None and token not in self.tokens:
            return 403, "Permission denied: token with AccessorID lacks permission 'service:write'"
        if self.takes:
            time.sleep(self.takes)
        if self.silent:
            self.released.wait(HANGS)
        if self.answers:
            return self.answers.pop(0), "as the test wants it"
        if method != "PUT":
            return 405, f"method {method} not allowed"
        if path == REGISTER:
            return self._register(body)
        if path.startswith(DEREGISTER):
            return self._deregister(unquote(path.removeprefix(DEREGISTER)))
        return 404, "no such path"

    def _register(self, body: bytes) -> tuple[int, str]:
        service: Json = json.loads(body)
        wrong = [f"{name} is {value!r}" for name, value in service.items() if type(value) is not FIELDS.get(name)]
        wrong += [f"tag {tag!r}" for tag in service.get("Tags", []) if not isinstance(tag, str)]
        meta = service.get("Meta", {})
        wrong += [f"meta {key!r}" for key in meta if not META_KEY.fullmatch(key)]
        wrong += [f"meta {v!r}" for v in meta.values() if not isinstance(v, str) or len(v) > LONGEST_META]
        if not service.get("Name"):
            wrong.append("no Name")
        if len(meta) > MOST_META:
            wrong.append("too much meta")
        if wrong:
            self.wrong += wrong
            return 400, "; ".join(wrong)
        if service["ID"] in self.forbidden:
            return 403, "Permission denied"
        self.services[service.get("ID") or service["Name"]] = service
        return 200, ""

    def _deregister(self, id_: str) -> tuple[int, str]:
        if self.services.pop(id_, None) is None:
            return 404, f'Unknown service ID "{id_}". Ensure that the service ID is passed, not the service name.'
        return 200, ""


@contextmanager
def consul(tls: ssl.SSLContext | None = None) -> Iterator[Agent]:
    """An agent that listens on a free port, by TLS where a context is given."""
    agent = Agent()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, said = agent.take(self.command, self.path, body, self.headers.get("X-Consul-Token"))
            if status == 0:  # hangs up without a word
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(said.encode())))
            self.end_headers()
            self.wfile.write(said.encode())

        do_GET = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the base class looks for these names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that went away is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:  # the handshake is in the thread of the connection, with its first read
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        agent.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield agent
        finally:
            agent.released.set()
            server.shutdown()
            thread.join()
