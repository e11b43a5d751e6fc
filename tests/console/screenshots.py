"""Pictures of the console for the README: `make screenshots` writes them into docs."""

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from playwright.sync_api import Page, ViewportSize

from tests.edge.browser import chromium
from tests.making import Json, event_json, life, node
from tests.processes import serving

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZE = ViewportSize(width=1240, height=800)  # pixels
NODES = 1200
SHOWN = node(7)
SHARES = {
    "pending_registration": 3,
    "accepted": 4,
    "awaiting_ack": 5,
    "ack_received": 2,
    "active": 80,
    "rejected": 2,
    "ack_timed_out": 3,
    "liveness_expired": 4,
}


def rows(now: datetime) -> list[Json]:
    """Events that write rows in all states, the deadlines around now."""
    chance = random.Random(7)
    events = []
    for number in range(NODES):
        [state] = chance.choices(list(SHARES), weights=list(SHARES.values()))
        deadline = (now + timedelta(seconds=chance.uniform(-1, 90))).isoformat()
        data: Json = {
            "current_state": state,
            "node_type": chance.choice(["compute", "storage", "gateway"]),
            "registered_at": (now - timedelta(hours=3)).isoformat(),
        }
        if state in {"accepted", "awaiting_ack"}:
            data["ack_deadline"] = deadline
        if state == "active":
            data["liveness_deadline"] = deadline
        moment = (now - timedelta(seconds=chance.uniform(0, 60))).isoformat()
        events.append(
            event_json("registration.recorded", 1, entity_id=node(1000 + number), data=data, occurred_at=moment)
        )
    return events


def shown(now: datetime) -> list[Json]:
    """The life of one node, up to a moment ago."""
    events = life(SHOWN)
    capabilities = {"gpu": True, "postgres": True, "cores": 64, "region": "eu-central"}
    events[0]["data"] = {"node_type": "compute", "node_version": "2.4.0", "capabilities": capabilities}
    for number, event in enumerate(events):
        event["occurred_at"] = (now - timedelta(seconds=40 - 4 * number)).isoformat()
    heartbeat = event_json("node.heartbeat", 6, entity_id=SHOWN, occurred_at=(now - timedelta(seconds=3)).isoformat())
    return [*events, heartbeat]


def take(page: Page, url: str, name: str) -> None:
    """Take a picture of a page, once its data is there."""
    page.goto(url)
    page.locator("main .page").wait_for()
    page.wait_for_timeout(300)
    path = DOCS / f"console-{name}.png"
    page.screenshot(path=path, animations="disabled")
    print(f"{path}: {path.stat().st_size:,} bytes")  # noqa: T201 - a command


def main() -> None:
    """Start a service, fill it, and take the pictures."""
    with (
        tempfile.TemporaryDirectory(prefix="pqs-") as folder,
        serving(Path(folder), data_dir=Path(folder) / "data", log_level="error") as service,
        chromium() as browser,
    ):
        now = datetime.now(UTC)
        for events in (rows(now), shown(now)):
            answer = httpx.post(f"{service.url}/v1/events", json=events, timeout=60)
            assert answer.status_code == 200, answer.text
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        take(page, f"{service.url}/ui/overview", "overview")
        take(page, f"{service.url}/ui/entity?id={SHOWN}", "entity")


if __name__ == "__main__":
    main()
