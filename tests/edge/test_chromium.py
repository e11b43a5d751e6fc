"""Pages of other origins in a real browser: what they cannot do here, and what a listed one can."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from tests.databases import new_database
from tests.edge.programs import program, run
from tests.making import NODE, event_json, node
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
    """A web server of another origin that serves the last of these texts; its address."""

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


def browse(url: str, profile: Path) -> dict[str, object]:
    """What the page at an address said, in a browser without a window."""
    browser = program("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=8000")
    shown = run(browser, *options, f"--user-data-dir={profile}", "--dump-dom", url).stdout.decode()
    said = shown.partition('<pre id="said">')[2].partition("</pre>")[0]
    assert said, shown
    return dict(json.loads(said))


def text_for(service: Service, number: int) -> str:
    """The page, for a service and an event of a node of its own."""
    event = event_json("registration.initiated", 1, entity_id=node(number))
    return PAGE % {"service": json.dumps(service.url), "event": json.dumps(event), "node": NODE}


def test_a_page_of_another_origin_changes_nothing(live: Service, tmp_path: Path) -> None:
    """A body without a type, which a browser sends without asking, is refused like any other; nothing is read."""
    httpx.post(f"{live.url}/v1/events", json=event_json("registration.initiated", 1))
    with page([text_for(live, 1)]) as origin:
        said = browse(origin, tmp_path)
    assert said == {"blob": "opaque", "plain": "opaque", "json": "TypeError", "read": "TypeError"}
    assert httpx.get(f"{live.url}/v1/entities/{node(1)}").status_code == 404


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
        text.append(text_for(service, 2))
        said = browse(origin, tmp_path)
        assert (said["json"], said["read"]) == (200, '200 "1" 36')
        assert httpx.get(f"{service.url}/v1/entities/{node(2)}").status_code == 200
