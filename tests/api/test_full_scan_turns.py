"""Full scans, through the application: the third concurrent one is refused at once."""

import httpx
from fastapi import FastAPI

from app import main
from app.settings import Settings


async def test_a_full_scan_without_a_turn_is_a_429(settings: Settings) -> None:
    """While two full scans run, a third gets 429 with `Retry-After`; other lists and the counts are answered."""
    app: FastAPI = main.create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        with app.state.full_scans.now(), app.state.full_scans.now():
            for accept in ("application/json", "application/x-ndjson"):
                refused = await client.get("/v1/entities?node_type=compute", headers={"Accept": accept})
                assert refused.status_code == 429, refused.text
                assert int(refused.headers["retry-after"]) >= 1
            for path in ("/v1/entities", "/v1/state-counts", "/v1/overdue/ack", "/readyz"):
                assert (await client.get(path)).status_code == 200
        assert (await client.get("/v1/entities?node_type=compute")).status_code == 200
