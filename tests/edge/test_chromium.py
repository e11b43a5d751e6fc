"""Pages of other origins in a real browser: what they cannot do to a service, and what a listed page can do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from tests.databases import new_database
from tests.edge.programs import program, run
from tests.making import NODE, Json, event_json, node
from tests.processes import Service, serving

# What a page tries: each writes its result into the page, which the browser prints at the end.
PAGE = """<!doctype html><pre id="said"></pre><script>
const service = %(service)s, event = %(event)s, said = {};
async function attempt(name, work) {
  try { said[name] = await work(); } catch (error) { said[name] = String(error.name); }
}
(async () => {
  await attempt("blob", async () => (await fetch(service + "/v1/events",
    {method: "POST", mode: "no-cors", body: new Blob([JSON.stringify(event)])})).type);
  await attempt("plain", async () => (await fetch(service + "/v1/events",
    {method: "POST", mode: "no-cors", body: JSON.stringify(event)})).type);
  await attempt("json", async () => (await fetch(service + "/v1/events",
    {method: "POST", body: JSON.stringify(event), headers: {"Content-Type": "application/json"}})).status);
  await attempt("retry", async () => (await fetch(service + "/v1/dead-letters/%(letter)s/retry",
    {method: "POST", mode: "no-cors"})).type);
  await attempt("retry by Blob", async () => (await fetch(service + "/v1/dead-letters/%(letter)s/retry",
    {method: "POST", mode: "no-cors", body: new Blob([])})).type);
  await attempt("drop", async () => (await fetch(service + "/v1/dead-letters/%(letter)s",
    {method: "DELETE"})).status);
  await attempt("form", () => new Promise((done) => {
    const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {name: "frame"}));
    frame.onload = () => done("sent");
    const form = Object.assign(document.createElement("form"),
      {method: "POST", target: "frame", action: service + "/v1/dead-letters/%(letter)s/retry"});
    document.body.appendChild(form).submit();
  }));
  await attempt("beacon", async () => navigator.sendBeacon(service + "/v1/events", JSON.stringify(event)));
  await attempt("read", async () => {
    const answer = await fetch(service + "/v1/entities/%(node)s");
    const id = answer.headers.get("X-Correlation-ID") || "";
    return answer.status + " " + answer.headers.get("ETag") + " " + id.length;
  });
  document.getElementById("said").textContent = JSON.stringify(said);
})();
</script>"""


@contextmanager
def page(text: list[str]) -> Iterator[str]:
    """The address of a web server of another origin, which serves the last of these texts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text[-1].encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def browse(url: str, profile: Path, *options: str) -> str:
    """The page at an address as a headless browser finally shows it."""
    browser = program("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    always = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=8000")
    return run(browser, *always, *options, f"--user-data-dir={profile}", "--dump-dom", url).stdout.decode()


def said_by(shown: str) -> dict[str, object]:
    """The text that a page finally shows."""
    said = shown.partition('<pre id="said">')[2].partition("</pre>")[0]
    assert said, shown
    return dict(json.loads(said))


def text_for(address: str, number: int, letter: int = 1) -> str:
    """The page for a service's address, an event of its own node, and a dead letter."""
    event = event_json("registration.initiated", 1, entity_id=node(number))
    return PAGE % {
        "service": json.dumps(address),
        "event": json.dumps(event),
        "node": NODE,
        "letter": letter,
    }


async def add_letter(url: str, value: Json) -> int:
    """Add a message to a database's dead letters; returns its id."""
    connection = await asyncpg.connect(url)
    try:
        return int(
            await connection.fetchval(
                'INSERT INTO dead_letters (source, topic, partition, "offset", value, headers, error) '
                "VALUES ('consumer', 'nodes', 0, 1, $1, '[]', 'unreadable') RETURNING id",
                json.dumps(value).encode(),
            )
        )
    finally:
        await connection.close()


@contextmanager
def with_a_letter(folder: Path, number: int) -> Iterator[tuple[Service, int]]:
    """A service with a row, and with a dead letter that a retry would apply."""
    value = event_json("registration.initiated", 1, entity_id=node(number))
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(new_database()) as url,
        serving(folder, database_url=url, log_level="error") as service,
    ):
        httpx.post(f"{service.url}/v1/events", json=event_json("registration.initiated", 1))
        yield service, portal.call(add_letter, url, value)


def test_a_page_of_another_origin_changes_nothing(tmp_path: Path) -> None:
    """A foreign page's requests without preflight are refused: untyped or empty bodies, forms, beacons."""
    with with_a_letter(tmp_path, 3) as (service, letter):
        with page([text_for(service.url, 1, letter)]) as origin:
            said = said_by(browse(origin, tmp_path / "profile"))
        assert said == {
            "blob": "opaque",
            "plain": "opaque",
            "json": "TypeError",
            "retry": "opaque",
            "retry by Blob": "opaque",
            "drop": "TypeError",
            "form": "sent",
            "beacon": True,
            "read": "TypeError",
        }
        assert httpx.get(f"{service.url}/v1/entities/{node(1)}").status_code == 404
        assert httpx.get(f"{service.url}/v1/entities/{node(3)}").status_code == 404
        assert [each["id"] for each in httpx.get(f"{service.url}/v1/dead-letters").json()["items"]] == [letter]
        # It would have worked: this is the same call from somebody who is no page.
        assert httpx.post(f"{service.url}/v1/dead-letters/{letter}/retry").json()["outcome"] == "applied"


def test_a_name_that_points_here_changes_nothing(tmp_path: Path) -> None:
    """A page whose host name points at this machine reaches nothing by that name, and reads no page."""
    rules = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with with_a_letter(tmp_path, 3) as (service, letter):
        evil = service.url.replace("127.0.0.1", "evil.example")
        with page([text_for(evil, 1, letter)]) as origin:
            said = said_by(browse(origin.replace("127.0.0.1", "evil.example"), tmp_path / "one", rules))
        assert (said["json"], said["read"], said["drop"]) == ("TypeError", "TypeError", "TypeError")
        shown = browse(f"{evil}/v1/entities", tmp_path / "other", rules)
        assert "Misdirected Request" in shown
        assert str(NODE) not in shown
        for number in (1, 3):
            assert httpx.get(f"{service.url}/v1/entities/{node(number)}").status_code == 404
        assert len(httpx.get(f"{service.url}/v1/dead-letters").json()["items"]) == 1


def test_a_listed_page_reads_and_writes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A page of a listed origin posts events after a preflight, and reads the headers that clients need."""
    text: list[str] = []
    with (
        page(text) as origin,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(new_database()) as url,
        serving(tmp_path_factory.mktemp("service"), database_url=url, cors_origins=origin) as service,
    ):
        httpx.post(f"{service.url}/v1/events", json=event_json("registration.initiated", 1))
        text.append(text_for(service.url, 2))
        said = said_by(browse(origin, tmp_path))
        assert (said["json"], said["read"]) == (200, '200 "1" 36')
        assert httpx.get(f"{service.url}/v1/entities/{node(2)}").status_code == 200
