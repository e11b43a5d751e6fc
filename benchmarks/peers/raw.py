"""The peer *raw*: asyncpg connections that upsert rows by arrays, 1,000 a statement, without HTTP and checks.

The rows are prepared before the clock starts, so that only the upserts are measured.
"""

import asyncio
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

import asyncpg

from benchmarks.rows import Event

STATEMENT_ROWS = 1000
LIVENESS_WINDOW = timedelta(seconds=90)
TABLE = "registration_projections"

COLUMNS = f"""
SELECT attname AS name, format_type(atttypid, NULL) || '[]' AS type FROM pg_attribute
WHERE attrelid = '{TABLE}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""

Arrays = list[list[object]]


async def measure(url: str, lanes: list[Iterable[Event]]) -> float:
    """Upsert the events' rows with one connection a lane; returns the duration in seconds."""
    connections = [await asyncpg.connect(url) for _ in lanes]
    try:
        columns: dict[str, str] = {row["name"]: row["type"] for row in await connections[0].fetch(COLUMNS)}
        statement = _statement(columns)
        prepared = []
        for connection, lane in zip(connections, lanes, strict=True):
            upsert = await connection.prepare(statement)
            prepared.append((upsert, await _arrays(connection, list(columns), iter(lane))))
        began = time.perf_counter()
        await asyncio.gather(*(_upsert(upsert, batches) for upsert, batches in prepared))
        return time.perf_counter() - began
    finally:
        for connection in connections:
            await connection.close()


def _statement(columns: dict[str, str]) -> str:
    names = ", ".join(columns)
    arrays = ", ".join(f"${number}::{type_}" for number, type_ in enumerate(columns.values(), 1))
    new = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in {"entity_id", "domain"})
    return (
        f"INSERT INTO {TABLE} ({names}) SELECT * FROM unnest({arrays}) "
        f"ON CONFLICT (entity_id, domain) DO UPDATE SET {new}"
    )


async def _upsert(upsert: "asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]", batches: list[Arrays]) -> None:
    for batch in batches:
        await upsert.fetch(*batch)


async def _arrays(
    connection: "asyncpg.Connection[asyncpg.Record]", columns: list[str], events: Iterable[Event]
) -> list[Arrays]:
    """The rows after the events, in batches of one array for each column."""
    batches: list[Arrays] = []
    while batch := list(islice(events, STATEMENT_ROWS)):
        known = await connection.fetch(
            f"SELECT * FROM {TABLE} WHERE entity_id = ANY($1) AND domain = 'registration'",
            [event.entity_id for event in batch if not event.fresh],
        )
        rows = {str(row["entity_id"]): dict(row) for row in known}
        after = [_row(None if event.fresh else rows[event.entity_id], event) for event in batch]
        batches.append([[row.get(column) for row in after] for column in columns])
    return batches


def _row(row: dict[str, object] | None, event: Event) -> dict[str, object]:
    at = datetime.fromisoformat(event.occurred_at)
    moved = {"last_applied_event_id": UUID(event.event_id), "last_applied_sequence": event.stamp, "updated_at": at}
    if row is None:
        return moved | {
            "entity_id": UUID(event.entity_id),
            "domain": "registration",
            "current_state": "pending_registration",
            "node_type": "compute",
            "node_version": "1.0.0",
            "capabilities": '{"cpu":16,"region":"eu-1","tags":["rack-7"]}',
            "registered_at": at,
            "version": 1,
        }
    deadline, version = row["liveness_deadline"], row["version"]
    assert isinstance(version, int)
    computed = at + LIVENESS_WINDOW
    return (
        row
        | moved
        | {
            "last_heartbeat_at": at,
            "liveness_deadline": max(computed, deadline) if isinstance(deadline, datetime) else computed,
            "liveness_timeout_emitted_at": None,
            "correlation_id": None,
            "version": version + 1,
        }
    )
