"""What an attacker tries over a connection: rights borrowed from a request before, from another field, or by form."""

import gzip
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from app import main
from app.access import guard as guards
from app.access.keys import digest_of
from app.access.principals import Scope
from app.settings import read_settings
from app.store.database import Database
from tests.access.making import new_key
from tests.connections import Client, Listening
from tests.databases import new_database
from tests.making import NODE, Json, event_json, node

SECRET = "seen-by-nobody"
ENTITY = f"/v1/entities/{NODE}"  # in the default domain, which only one key covers
WORKFLOW = "/v1/workflows/theirs/1"
COMMIT: Json = {"state": {"of": SECRET}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}
HOST = "Host: localhost"


@dataclass
class Attacked:
    """A service with a row and a workflow, the key that covers them, and a key for another domain and prefix."""

    service: Listening
    app: Any
    full: str
    foreign: str


@pytest.fixture(scope="module")
async def attacked() -> AsyncIterator[Attacked]:
    """A service in the posture `required`, over real connections."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
        given: Json = {"scopes": tuple(Scope), "rate": None, "burst": None}
        full = await new_key(database, "full", domains=("*",), prefixes=("",), **given)
        foreign = await new_key(database, "foreign", domains=("mine",), prefixes=("mine/",), **given)
        await database.close()
        app = main.create_app(read_settings({"database_url": url, "pool_size": 4, "auth": "required"}))
        service = Listening(app, lifespan="on")
        async with service.listening():
            found = Attacked(service, app, full.text, foreign.text)
            event = event_json("registration.initiated", 1, data={"node_type": SECRET})
            async with service.connect() as client:
                assert await status(client, request("POST", "/v1/events", full.text, event)) == 200
                made = request("PUT", WORKFLOW, full.text, COMMIT, "If-None-Match: *")
                assert await status(client, made) == 201
            yield found


def request(
    method: str, target: str, key: str | None, body: object = None, *fields: str, media: str = "application/json"
) -> bytes:
    """A request as a client sends it."""
    lines = [f"{method} {target} HTTP/1.1", HOST, *fields]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    content = b""
    if body is not None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines += [f"Content-Type: {media}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


async def status(client: Client, sent: bytes) -> int:
    """The status of the answer, which shows nothing of the row unless it is 200."""
    await client.send(sent)
    answer = await client.answer()
    assert answer.status in {200, 201} or SECRET.encode() not in answer.body
    return answer.status


@pytest.mark.parametrize("ahead", [ENTITY, f"{ENTITY}?domain=registration", WORKFLOW])
async def test_nobody_borrows_the_key_of_a_request_before(attacked: Attacked, ahead: str) -> None:
    """Behind good requests of its connection, in one packet, each request is judged by its own fields."""
    good = request("GET", ahead, attacked.full)
    event = event_json("registration.initiated", 1, entity_id=node(9))
    mistyped = attacked.full[:-1] + ("0" if attacked.full[-1] != "0" else "1")
    for expected, bad in (
        (401, request("GET", ENTITY, None)),
        (401, request("GET", ENTITY, mistyped)),
        (401, request("GET", ENTITY, attacked.full[:15] + attacked.foreign[15:])),
        (403, request("GET", ENTITY, attacked.foreign)),
        (401, request("GET", WORKFLOW, None)),
        (403, request("GET", WORKFLOW, attacked.foreign)),
        (401, request("POST", "/v1/events", None, event)),
        (403, request("POST", "/v1/events", attacked.foreign, event)),
        (403, request("PUT", WORKFLOW, attacked.foreign, COMMIT, 'If-Match: "1"')),
    ):
        async with attacked.service.connect() as client:
            await client.send(good + good + bad + good)
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]
            refused = await client.answer()
            assert refused.status == expected, (bad, refused.body)
            assert SECRET.encode() not in refused.body
            assert (await client.answer()).status == 200


async def test_a_key_counts_only_where_it_belongs(attacked: Attacked) -> None:
    """In one Authorization field of the request's head, and nowhere else; no odd form of a request helps."""
    key, target = attacked.full, ENTITY
    bearer = f"Authorization: Bearer {key}"
    trailer = f"2\r\n[]\r\n0\r\n{bearer}\r\n\r\n".encode()
    chunked = request(
        "POST", "/v1/events", None, None, "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    odd = [
        (401, request("GET", f"{target}?access_token={key}", None)),
        (401, request("GET", target, None, None, f"Proxy-Authorization: Bearer {key}", f"Cookie: token={key}")),
        (401, request("GET", target, None, None, f"X-Api-Key: {key}", f"X-Authorization: Bearer {key}")),
        (401, request("GET", target, key, None, bearer)),
        (401, request("GET", target, attacked.foreign, None, bearer)),
        (400, request("GET", target, None, None, f"Authorization : Bearer {key}")),
        (400, f"GET {target} HTTP/1.1\r\n{HOST}\r\n {bearer}\r\n\r\n".encode()),
        (401, f"GET {target} HTTP/1.0\r\n\r\n".encode()),
        (401, request("GET", f"http://localhost{target}", None)),
        (403, request("GET", f"http://localhost{target}", attacked.foreign)),
        (401, request("GET", target, None, None, "X-Forwarded-For: 127.0.0.1", "X-Original-URL: /livez")),
        (
            403,
            request("GET", target, attacked.foreign, None, "X-HTTP-Method-Override: HEAD", "X-Rewrite-URL: /livez"),
        ),
        (401, request("GET", "/v1/changes", None, None, "Upgrade: websocket", "Connection: Upgrade")),
        (401, chunked + trailer),
    ]
    odd += [
        (401, request("GET", target, None, None, f"Authorization: {scheme} {key}"))
        for scheme in ("Basic", "Token", "DPoP", "", 'Bearer "', "Bearer\t", "Bearer Bearer", "Bearer x,")
    ]
    for expected, sent in odd:
        async with attacked.service.connect() as client:
            assert await status(client, sent) == expected, sent


EVENT = event_json("registration.initiated", 1, entity_id=node(9))
CLOUD: Json = {
    "specversion": "1.0",
    "id": str(node(1)),
    "source": "x",
    "type": "registration.initiated",
    "subject": str(node(9)),
    "time": "2026-01-01T00:00:00Z",
    "sequence": "1",
    "data": {"node_type": "compute"},
}
BINARY = tuple(f"ce-{name}: {value}" for name, value in CLOUD.items() if name != "data")
MINE = EVENT | {"domain": "mine", "entity_id": str(node(8))}
THEIRS = EVENT | {"domain": "registration"}


@pytest.mark.parametrize(
    ("body", "media", "fields"),
    [
        (EVENT, "application/json", ()),
        ([MINE, THEIRS], "application/json", ()),
        (b"\xef\xbb\xbf" + json.dumps([THEIRS]).encode(), "application/json", ()),
        (json.dumps(MINE)[:-1].encode() + b',"domain":"registration"}', "application/json", ()),
        (json.dumps(MINE).replace('"mine"', '"registratio\\u006e"').encode(), "application/json", ()),
        (EVENT | {"domain": "Mine"}, "application/json", ()),
        (EVENT | {"domain": "mine "}, "application/json", ()),
        (EVENT, "APPLICATION/JSON; charset=utf-8", ()),
        (gzip.compress(json.dumps(EVENT).encode()), "application/json", ("Content-Encoding: gzip",)),
        (CLOUD, "application/cloudevents+json", ()),
        ([CLOUD], "application/cloudevents-batch+json", ()),
        ({"node_type": "compute"}, "application/json", BINARY),
        ({"node_type": "compute"}, "application/json", (*BINARY, "ce-domain: registration")),
    ],
)
async def test_no_form_of_an_event_gets_around_its_domain(
    attacked: Attacked, body: object, media: str, fields: tuple[str, ...]
) -> None:
    """Whatever form says so: an event of a domain that the key does not cover is refused, dry or not, and no event
    beside it is written."""
    async with attacked.service.connect() as client:
        for target in ("/v1/events", "/v1/events?dry_run=true"):
            sent = request("POST", target, attacked.foreign, body, *fields, media=media)
            assert await status(client, sent) == 403
        for number in (8, 9):
            for domain in ("mine", "registration"):
                asked = request("GET", f"/v1/entities/{node(number)}?domain={domain}", attacked.full)
                assert await status(client, asked) == 404


async def test_a_cursor_of_another_domain_opens_nothing(attacked: Attacked) -> None:
    """What a caller with more rights got does not widen those of one with fewer."""
    async with attacked.service.connect() as client:
        await client.send(request("GET", "/v1/changes?after=start&limit=1", attacked.full))
        feed = json.loads((await client.answer()).body)["next"]
        for target, expected in (
            (f"/v1/changes?after={feed}", 403),
            (f"/v1/changes?domain=registration&after={feed}", 403),
            ("/v1/changes?domain=*&after=start", 403),
            ("/v1/changes?domain=mine&domain=registration&after=start", 422),
            ("/v1/entities?domain=registration", 403),
            ("/v1/entities?domain=mine&domain=registration", 422),
            ("/v1/workflows/mine/..%2Ftheirs/1", 404),
            ("/v1/workflows/theirs%2F1", 403),
            ("/v1/audit", 403),
            ("/v1/dead-letters", 403),
            ("/v1/watermarks", 403),
        ):
            assert await status(client, request("GET", target, attacked.foreign)) == expected, target
        await client.send(request("GET", f"/v1/changes?domain=mine&after={feed}&limit=1000", attacked.foreign))
        answer = await client.answer()
        assert answer.status == 200
        assert SECRET.encode() not in answer.body


async def test_a_connection_keeps_the_key_that_was_found(attacked: Attacked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is made once, although other fields change; another key is looked up."""
    made: list[bytes] = []

    def watched(text: bytes) -> bytes | None:
        made.append(text)
        return digest_of(text)

    monkeypatch.setattr(guards, "digest_of", watched)
    async with attacked.service.connect() as client:
        for number in range(4):
            sent = request("GET", ENTITY, attacked.full, None, f"X-Correlation-ID: {number}")
            assert await status(client, sent) == 200
        found = len(made)
        assert 0 < found <= 2
        assert await status(client, request("GET", ENTITY, attacked.full)) == 200
        assert await status(client, request("GET", WORKFLOW, attacked.full, None, "X-Correlation-ID: w")) == 200
        assert len(made) == found
        assert await status(client, request("GET", ENTITY, attacked.foreign)) == 403
        assert len(made) > found


async def test_a_refused_request_is_logged_with_its_peer(
    attacked: Attacked, caplog: pytest.LogCaptureFixture
) -> None:
    """One that cannot be read, too."""
    with caplog.at_level(logging.INFO, "app.access"):
        async with attacked.service.connect() as client:
            assert await status(client, b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n") == 501
    [record] = [each for each in caplog.records if each.name == "app.access"]
    assert record.getMessage().endswith(" - 127.0.0.1")
