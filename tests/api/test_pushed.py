"""Streams that are pushed to their connections, and coded ones: refusals, revoked keys, slow readers."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import httpx

from app.feed import tokens
from app.feed.tokens import Token
from app.store import keys
from app.store.changes import Place
from app.store.database import Database
from tests.access.making import change, new_key
from tests.api.test_changes import CHANGES, CODINGS, served
from tests.making import NODE, event_json, life, node

ENTITY = f"/v1/entities/{NODE}"


@CODINGS
async def test_a_place_that_is_lost_has_a_status(tmp_path: Path, database_url: str, coding: str) -> None:
    """As long as the stream has not begun; and a connection that is refused so can be used again."""
    async with served(tmp_path, database_url) as (_, client):
        headers = {"Accept": "application/x-ndjson", "Accept-Encoding": coding}
        for after, status in ((tokens.write(Token(Place(2**40, 17))), 410), ("damaged", 400)):
            answer = await client.get(CHANGES, params={"after": after}, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


@CODINGS
async def test_a_stream_ends_with_the_right_to_it(
    tmp_path: Path, database_url: str, database: Database, coding: str
) -> None:
    """The next change after its key was revoked is not told."""
    scopes = ("entities:read", "events:write")
    key, other = [await new_key(database, name, scopes=scopes, rate=1e3, burst=1e3) for name in ("one", "other")]
    async with served(tmp_path, database_url, auth="required") as (_, client):
        client.headers["Authorization"] = f"Bearer {other.text}"
        bearer = f"Bearer {key.text}"
        headers = {"Accept": "application/x-ndjson", "Accept-Encoding": coding, "Authorization": bearer}
        async with client.stream("GET", CHANGES, params={"after": "now"}, headers=headers) as stream:
            lines = stream.aiter_lines()
            assert json.loads(await anext(lines))["kind"] == "bookmark"
            await client.post("/v1/events", json=life()[:1])
            assert json.loads(await anext(lines))["version"] == 1
            await change(database, lambda connection: keys.revoke(connection, [key.id]))
            async with asyncio.timeout(10):
                while (await client.get(ENTITY, headers={"Authorization": bearer})).status_code == 200:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            await client.post("/v1/events", json=life()[1:2])
            assert [line async for line in lines] == []


async def test_who_reads_slowly_misses_nothing(tmp_path: Path, database_url: str) -> None:
    """More than the connection holds is told in order, when the client reads at last."""
    count, many = 20, 250
    async with served(tmp_path, database_url) as (service, client):
        address = httpx.URL(service.url)
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=2**20)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        writer.write(b"GET /v1/changes?after=now HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n")
        await reader.readuntil(b"bookmark")
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # a reader that does not read
        for first in range(0, count * many, many):
            events = [event_json("registration.initiated", 1, entity_id=node(n)) for n in range(first, first + many)]
            await client.post("/v1/events", json=events)
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        told: list[dict[str, Any]] = []
        async with asyncio.timeout(20):
            while len(told) < count * many:
                line = await reader.readline()
                told += [json.loads(line)] if b'"kind":"change"' in line else []
        ids = [each["id"] for each in told]
        assert ids == sorted(set(ids))
        assert {each["entity_id"] for each in told} == {str(node(n)) for n in range(count * many)}
        writer.close()
