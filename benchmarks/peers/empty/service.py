"""The peer *empty*: a FastAPI route with the same path and a constant answer, which shows the framework's cost."""

from uuid import UUID

from fastapi import FastAPI, Response

ANSWER = (
    b'{"entity_id":"00000000-0000-4000-8000-000000000000","domain":"registration","current_state":"active",'
    b'"node_type":"compute","node_version":"1.0.0","capabilities":{"cpu":4,"gpu":true,"region":"eu-0",'
    b'"tags":["rack-0","batch"]},"ack_deadline":null,"liveness_deadline":"2026-01-01T00:00:00Z",'
    b'"last_heartbeat_at":"2026-01-01T00:00:00Z","ack_timeout_emitted_at":null,"liveness_timeout_emitted_at":null,'
    b'"last_applied_event_id":"00000000-0000-4000-8000-000000000000","last_applied_partition":null,'
    b'"last_applied_offset":null,"last_applied_sequence":5,"registered_at":"2026-01-01T00:00:00Z",'
    b'"updated_at":"2026-01-01T00:00:00Z","correlation_id":null,"version":5}'
)

app = FastAPI()


@app.get("/v1/entities/{entity_id}")
async def get_entity(entity_id: UUID, domain: str = "registration") -> Response:
    """Give the same answer for every entity."""
    return Response(ANSWER, headers={"ETag": '"5"'}, media_type="application/json")


@app.get("/readyz")
async def readyz() -> Response:
    """Answer while the process is up."""
    return Response(b"{}", media_type="application/json")
