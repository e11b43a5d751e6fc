"""Chunks of lines sent with the client: retried as a whole, with a result for each line."""

import json
from typing import Any
from uuid import uuid4

import pytest

from app.domain.results import Outcome
from pqs_client import (
    Client,
    ClientError,
    InterruptedStreamError,
    NotFoundError,
    ProblemError,
    Retry,
    UnexpectedAnswerError,
)
from tests.client.conftest import answering, asking
from tests.client.proxy import Proxy
from tests.making import Json, event_json


async def test_a_chunk_whose_answer_was_lost_is_sent_again_whole(proxy: Proxy) -> None:
    """A chunk is sent again whole; each line has a result, and lines stored before are told apart."""
    events = [event_json("registration.initiated", 1, entity_id=uuid4()) for _ in range(2)]
    proxy.lose_answers = 1
    async with Client(proxy.url, retry=Retry(base=0.001, cap=0.01)) as client:
        sent = await client.events.send_lines([json.dumps(each).encode() for each in events])
    assert [(each.line, each.outcome) for each in sent.results] == [(1, "duplicate"), (2, "duplicate")]
    assert sent.repeated == 2


async def test_progress_of_a_chunk_begins_the_attempts_anew() -> None:
    """`pause` gets the number of committed lines; failures are counted since that number last rose."""
    bodies = [{"committed_lines": 1}, {}, {"committed_lines": 2}, {"committed_lines": 1}]
    script = [answering(503, json.dumps(body).encode()) for body in bodies]
    told: list[tuple[int, int]] = []

    async def service(*arguments: Any) -> None:
        await script.pop(0)(*arguments)

    def pause(error: ClientError, failures: int, committed: int) -> float:
        told.append((failures, committed))
        if not script:
            raise error
        return 0.0

    async with asking(service) as client:
        with pytest.raises(InterruptedStreamError):
            await client.events.send_lines([b"{}", b"{}"], pause=pause)
    assert told == [(1, 1), (2, 1), (1, 2), (2, 2)]


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (422, 1)])
async def test_a_chunk_is_sent_again_as_the_clients_retry_says(status: int, attempts: int) -> None:
    """Without `pause`, temporary errors are retried as Retry allows, and others are raised at once."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with asking(answering(status, b"{}"), sleep=sleep, retry=Retry(attempts=3)) as client:
        with pytest.raises(ProblemError):
            await client.events.send_lines([b"{}"])
    assert len(waits) == attempts - 1


@pytest.mark.parametrize("verdict", [{"line": 2, "outcome": "early"}, {"line": 1, "outcome": "lost"}, None])
async def test_an_answer_that_does_not_account_for_every_line_is_unexpected(verdict: Json | None) -> None:
    """Results for unsent lines, unknown outcomes or a wrong number of lines raise an error."""
    summary = dict.fromkeys((*Outcome, "invalid"), 0) | {"received": 1 if verdict else 2}
    body = b"".join(json.dumps(each).encode() + b"\n" for each in (verdict, {"summary": summary}) if each)
    async with asking(answering(200, body)) as client:
        with pytest.raises(UnexpectedAnswerError, match="account for the 1 lines"):
            await client.events.send_lines([b"{}"])


async def test_headers_of_the_client_go_with_every_call() -> None:
    """`headers` are sent with each call, in addition to its own."""
    seen: list[dict[bytes, bytes]] = []

    async def service(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]))
        await answering(404, b"")(scope, receive, send)

    async with asking(service, headers={"User-Agent": "orchestrator/1"}) as client:
        with pytest.raises(NotFoundError):
            await client.entities.counts()
    assert seen[0][b"user-agent"] == b"orchestrator/1"
