"""curl, as people and scripts use it."""

import gzip
import json
from pathlib import Path

import httpx
import pytest

from tests.edge.programs import program, run
from tests.making import NODE, event_json, life, node
from tests.processes import Service

PATHS = [
    "/v1/entities",
    f"/v1/entities/{NODE}",
    f"/v1/entities/{NODE}/state",
    f"/v1/entities/{node(404)}",
    "/v1/state-counts",
    "/v1/overdue/ack?as_of=2026-01-01T00:00:00Z",
    "/v1/overdue/liveness?as_of=2026-01-01T00:00:00Z",
    "/v1/workflows",
    "/v1/workflows/none",
    "/v1/watermarks",
    "/v1/dead-letters",
    "/livez",
    "/readyz",
    "/openapi.json",
    "/docs",
]


def curl(*arguments: object, stdin: bytes | None = None) -> bytes:
    """The output of curl."""
    return run(program("curl"), "--silent", "--show-error", "--max-time", 20, *arguments, stdin=stdin).stdout


def told(*arguments: object) -> tuple[int, dict[str, str]]:
    """The status and headers of the answer to a request."""
    return head_of(curl(*arguments, "--dump-header", "-", "--output", "/dev/null"))


def head_of(raw: bytes) -> tuple[int, dict[str, str]]:
    """The status and headers of the last answer in curl's output, without headers that vary each time."""
    lines = raw.decode().replace("\r", "").strip().split("\n\n")[-1].splitlines()
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    for name in ("date", "x-correlation-id"):
        headers.pop(name, None)
    return int(lines[0].split()[1]), headers


@pytest.fixture(scope="module", autouse=True)
def _with_nodes(live: Service) -> None:
    """A service with nodes in it."""
    events = life() + [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(30)]
    assert httpx.post(f"{live.url}/v1/events", json=events).status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_head(live: Service, path: str, tmp_path: Path) -> None:
    """`curl -I` gets the status and headers of GET, on every path."""
    shown = tmp_path / "head"
    curl("--dump-header", shown, f"{live.url}{path}")
    assert head_of(curl("-I", f"{live.url}{path}")) == head_of(shown.read_bytes())


def test_head_of_the_metrics(live: Service) -> None:
    """HEAD of the metrics has the headers of GET, although the metrics change with each request."""
    assert head_of(curl("-I", f"{live.url}/metrics"))[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_options(live: Service, path: str) -> None:
    """`curl -X OPTIONS` lists the methods of a path."""
    status, headers = told("-X", "OPTIONS", f"{live.url}{path}")
    allow = "GET, HEAD, OPTIONS, PUT" if "workflows/" in path else "GET, HEAD, OPTIONS"
    assert (status, headers["allow"], headers["cache-control"]) == (204, allow, "no-store")


def test_options_of_the_service(live: Service) -> None:
    """`OPTIONS *` lists the methods of the whole service."""
    status, headers = head_of(curl("-X", "OPTIONS", "--request-target", "*", "--dump-header", "-", live.url))
    assert (status, headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, POST, PUT")


def test_http2_is_not_spoken_and_nothing_is_lost(live: Service) -> None:
    """`curl --http2` offers an upgrade to HTTP/2; the service ignores it, and curl continues in HTTP/1.1."""
    event = event_json("registration.initiated", 1, entity_id=node(1000))
    answer = curl("--http2", "-H", "Content-Type: application/json", "-d", json.dumps(event), f"{live.url}/v1/events")
    assert json.loads(answer)["outcome"] == "applied"


@pytest.mark.parametrize(("form", "media"), [("lines", "application/x-ndjson"), ("array", "application/json")])
def test_a_gzip_body(live: Service, form: str, media: str) -> None:
    """A gzipped body is accepted."""
    first = 2000 if form == "lines" else 3000
    events = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(first, first + 50)]
    text = "\n".join(map(json.dumps, events)) if form == "lines" else json.dumps(events)
    coded = gzip.compress(text.encode())
    headers = ("-H", f"Content-Type: {media}", "-H", "Content-Encoding: gzip")
    answer = curl(*headers, "--data-binary", "@-", f"{live.url}/v1/events", stdin=coded)
    assert json.loads(answer.splitlines()[-1])["summary"]["applied"] == 50


def test_another_coding_is_refused(live: Service) -> None:
    """A body in another coding is a 415 that lists the accepted codings."""
    sent = ("-H", "Content-Type: application/json", "-H", "Content-Encoding: br", "-d", "{}")
    status, headers = told(*sent, f"{live.url}/v1/events")
    assert (status, headers["accept-encoding"]) == (415, "gzip, identity")


@pytest.mark.parametrize("accept", ["application/json", "application/x-ndjson"])
def test_a_compressed_list(live: Service, accept: str, tmp_path: Path) -> None:
    """`curl --compressed` gets the same list in fewer bytes."""
    plain = curl("-H", f"Accept: {accept}", f"{live.url}/v1/entities?limit=1000")
    shown = tmp_path / "head"
    coded = curl(
        "--compressed", "--dump-header", shown, "-H", f"Accept: {accept}", f"{live.url}/v1/entities?limit=1000"
    )
    assert coded == plain
    _, headers = head_of(shown.read_bytes())
    assert (headers["content-encoding"], headers["vary"]) == ("gzip", "Accept, Accept-Encoding")


def test_a_point_read_is_never_compressed(live: Service, tmp_path: Path) -> None:
    """A point read is never gzipped, as that would cost more than the read."""
    shown = tmp_path / "head"
    curl("--compressed", "--dump-header", shown, f"{live.url}/v1/entities/{NODE}")
    assert "content-encoding" not in head_of(shown.read_bytes())[1]


def test_other_hosts_are_not_served(live: Service) -> None:
    """A request by a foreign host name that points at this address is refused."""
    assert head_of(curl("-I", "-H", "Host: evil.example", f"{live.url}/livez"))[0] == 421
    assert head_of(curl("-I", "-H", "Host: evil.example", f"{live.url}/v1/entities/{NODE}"))[0] == 421


def test_an_id_of_a_gateway(live: Service) -> None:
    """Correlation ids of any form come back unchanged."""
    given = "Root=1-67891233-abcdef012345678912345678"
    for path in ("/livez", f"/v1/entities/{NODE}"):
        assert (
            f"x-correlation-id: {given}"
            in curl("-i", "-H", f"X-Correlation-ID: {given}", f"{live.url}{path}").decode()
        )


def test_a_receiver_of_cloudevents_answers_nothing(live: Service) -> None:
    """With `Prefer: return=minimal` a sender of CloudEvents gets a 204, or a problem if there is one."""
    attributes = {"specversion": "1.0", "type": "registration.initiated", "source": "/nodes", "sequence": "1"}
    attributes |= {"subject": str(node(9000)), "id": str(node(9001)), "time": "2026-01-01T00:00:00Z"}
    headers = [f"ce-{name}: {value}" for name, value in attributes.items()]
    headers += ["Content-Type: application/json", "Prefer: return=minimal"]
    sent = [part for header in headers for part in ("-H", header)]
    for _ in ("applied", "duplicate"):
        status, answered = told(*sent, "-d", '{"node_type": "compute"}', f"{live.url}/v1/events")
        assert (status, answered["preference-applied"]) == (204, "return=minimal")
    status, answered = told(*sent, "-d", "[]", f"{live.url}/v1/events")
    assert (status, answered["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize(
    ("query", "status"),
    [("limit=1&limit=2", 422), ("node_type=", 422), ("updated_before=2026-06-01T00:00:00+02:00", 200)],
)
def test_queries(live: Service, query: str, status: int) -> None:
    """A repeated or empty parameter is refused; a raw `+` in a time is read as a plus."""
    assert head_of(curl("-I", f"{live.url}/v1/entities?{query}"))[0] == status
