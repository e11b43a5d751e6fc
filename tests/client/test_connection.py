"""Retries: which calls are sent again, through a proxy that breaks connections to a real service."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.domain.results import Outcome
from app.settings import read_settings
from pqs_client import (
    Client,
    ConnectionFailedError,
    InterruptedStreamError,
    NotFoundError,
    ProblemError,
    Retry,
    TimedOutError,
    UnavailableError,
    UnexpectedAnswerError,
)
from tests.client.conftest import answering, asking, client_in_process
from tests.client.proxy import Proxy
from tests.making import Json, event_json, life, node
from tests.processes import serving

NOWHERE = "postgresql://postgres@127.0.0.1:1/nowhere"  # nothing listens there
SOON = 0.5  # seconds that a client waits for what does not come
QUICK = Retry(base=0.001, cap=0.01)

Call = Callable[[Client], Awaitable[object]]


@pytest.fixture
async def through(proxy: Proxy) -> AsyncIterator[Client]:
    """A client of the service behind the proxy."""
    async with Client(proxy.url, retry=QUICK) as client:
        yield client


def event_of_its_own() -> Json:
    """The first event of an entity that no other test uses."""
    return life(uuid4())[0]


READS: dict[str, Call] = {
    "counts": lambda client: client.entities.counts(),
    "a page": lambda client: anext(client.entities.pages()),
    "a lookup": lambda client: client.entities.lookup([node(1)]),
    "a scan": lambda client: anext(client.overdue.ack()),
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("trouble", ["cut_requests", "lose_answers"])
async def test_a_read_is_sent_again(through: Client, proxy: Proxy, trouble: str, name: str) -> None:
    """A read whose request or answer is lost is sent again until it succeeds."""
    setattr(proxy, trouble, 2)
    await READS[name](through)
    assert getattr(proxy, trouble) == 0


async def test_a_read_whose_answer_does_not_come_is_sent_again(proxy: Proxy) -> None:
    """A read without an answer within the timeout is sent again, on another connection."""
    proxy.hold_answers = 2
    async with Client(proxy.url, timeout=SOON, retry=QUICK) as client:
        await client.entities.counts()
    assert proxy.hold_answers == 0


async def test_a_stream_of_rows_is_sent_again_until_it_begins(through: Client, proxy: Proxy) -> None:
    """The request for a stream of rows is repeated like any read until the answer has begun."""
    await through.events.send(event_of_its_own() | {"domain": "streamed"})
    proxy.lose_answers = 2
    assert len([row async for row in through.entities.stream(domain="streamed")]) == 1


async def test_a_stream_of_rows_that_breaks_off_is_an_error(through: Client, proxy: Proxy) -> None:
    """A stream that breaks in the middle raises an error, and does not look complete."""
    await through.events.send_all(event_of_its_own() | {"domain": "broken off"} for _ in range(2000))
    proxy.break_after = 10_000
    seen = 0

    async def read() -> None:
        nonlocal seen
        async for _ in through.entities.stream(domain="broken off"):
            seen += 1

    with pytest.raises(ConnectionFailedError):
        await read()
    assert 0 < seen < 2000


async def test_an_event_whose_answer_was_lost_is_a_duplicate(through: Client, proxy: Proxy) -> None:
    """An event is sent again, recognised by its position, and changes the row once."""
    event = event_of_its_own()
    proxy.lose_answers = 1
    result = await through.events.send(event)
    assert (result.outcome, result.version) == (Outcome.DUPLICATE, 1)


async def test_an_array_whose_answer_was_lost_is_taken_in_once(through: Client, proxy: Proxy) -> None:
    """An array is sent again, and each of its events changes its row once."""
    events = life(uuid4())
    proxy.lose_answers = 1
    batch = await through.events.send_all(events)
    assert (batch.summary.stale, batch.summary.duplicate) == (4, 1)
    assert batch.results[-1].version == 5


async def test_a_stream_of_events_is_not_sent_again(through: Client, proxy: Proxy) -> None:
    """If the answer to a stream of events is lost, the error says that the events may be stored."""
    proxy.lose_answers = 1
    with pytest.raises(ConnectionFailedError) as caught:
        await through.events.stream([event_of_its_own()])
    assert caught.value.perhaps_done
    assert proxy.requests <= 2


async def test_what_breaks_the_source_of_a_stream_is_raised(through: Client) -> None:
    """An exception of the events' source is raised unchanged."""

    def events() -> Iterator[Json]:
        yield event_of_its_own()
        raise LookupError("the source is broken")

    with pytest.raises(LookupError, match="the source is broken"):
        await through.events.stream(events())


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.events.stream([event_of_its_own()]),
        lambda client: client.workflows.create("key", {"a": 1}, {"effect_id": "e", "timestamp": "2026-01-01T00:00Z"}),
        lambda client: client.entities.counts(),
    ],
    ids=["a stream", "a commit without an action id", "a read"],
)
async def test_what_never_went_out_is_always_sent_again(call: Call) -> None:
    """If no connection can be made, nothing can have happened: every call is repeated up to its attempts."""
    waits: list[float] = []
    nobody = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    port = nobody.sockets[0].getsockname()[1]
    nobody.close()
    await nobody.wait_closed()

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with Client(f"http://127.0.0.1:{port}", retry=Retry(attempts=4), jitter=lambda: 1.0, sleep=sleep) as client:
        with pytest.raises(ConnectionFailedError, match=f"http://127.0.0.1:{port}/v1/") as caught:
            await call(client)
    assert not caught.value.perhaps_done
    assert waits == [0.1, 0.2, 0.4]


async def test_attempts_are_bounded(through: Client, proxy: Proxy) -> None:
    """A read that never gets an answer ends after its attempts, with one error and its cause."""
    proxy.lose_answers = 100
    with pytest.raises(ConnectionFailedError, match="/v1/state-counts: ") as caught:
        await through.entities.counts()
    assert isinstance(caught.value.__cause__, httpx.TransportError)
    assert proxy.lose_answers == 100 - QUICK.attempts


async def test_the_total_time_is_bounded(proxy: Proxy) -> None:
    """A call ends at its total time, even if it has attempts left."""
    proxy.hold_answers = 100
    async with Client(proxy.url, retry=Retry(total=SOON)) as client:
        with pytest.raises(ConnectionFailedError, match=f"no answer within {SOON} s") as caught:
            await client.entities.counts()
    assert caught.value.perhaps_done


async def test_a_silent_service_is_a_time_out_and_an_absent_one_is_not(proxy: Proxy) -> None:
    """TimedOutError tells a service that was reached and did not answer from one that cannot be reached."""
    proxy.hold_answers = 1
    async with Client(proxy.url, timeout=SOON, retry=Retry(attempts=1)) as client:
        with pytest.raises(TimedOutError):
            await client.entities.counts()
    async with Client("http://127.0.0.1:1", retry=Retry(attempts=1)) as client:
        with pytest.raises(ConnectionFailedError) as caught:
            await client.entities.counts()
    assert not isinstance(caught.value, TimedOutError)


async def test_the_bytes_of_answers_are_there_to_keep(proxy: Proxy) -> None:
    """`on_body` gets each body, and each line of a stream, before its value is there."""
    bodies: list[bytes] = []
    async with Client(proxy.url, on_body=bodies.append) as client:
        event = event_of_its_own() | {"domain": "kept"}
        await client.events.send(event)
        assert json.loads(bodies.pop())["outcome"] == "applied"
        async for row in client.entities.stream(domain="kept"):
            assert json.loads(bodies.pop())["entity_id"] == str(row.entity_id) == event["entity_id"]
    assert bodies == []


async def test_cancelling_a_call_is_no_error_of_the_client(proxy: Proxy) -> None:
    """A call that its caller cancels, for example by a timeout, raises no error of the client."""
    proxy.hold_answers = 100
    async with Client(proxy.url) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await client.entities.counts()


@pytest.mark.parametrize(
    ("retry", "longest"),
    [
        (Retry(), [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]),
        (Retry(base=1, cap=3), [1, 2, 3, 3, 3, 3, 3, 3]),
        (Retry(base=0), [0] * 8),
    ],
)
def test_the_longest_wait_doubles_up_to_its_cap(retry: Retry, longest: list[float]) -> None:
    """The upper bound of the wait doubles with each failure up to the cap, however many failures there are."""
    assert [retry.longest_wait(failures) for failures in range(1, 9)] == longest
    assert retry.longest_wait(10_000) <= retry.cap


@pytest.mark.parametrize("jitter", [0.0, 0.25, 1.0])
async def test_a_wait_is_the_services_and_a_share_of_the_longest(jitter: float) -> None:
    """After a 503 the client waits for Retry-After plus a random share of the longest wait."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    app = answering(503, b"", retry_after="2")
    async with asking(app, jitter=lambda: jitter, sleep=sleep, retry=Retry(attempts=3)) as client:
        with pytest.raises(UnavailableError):
            await client.entities.counts()
    assert waits == pytest.approx([2 + jitter * 0.1, 2 + jitter * 0.2])


async def test_a_wait_beyond_the_total_time_is_not_begun() -> None:
    """If `Retry-After` exceeds a call's remaining time, the error is raised at once, with that time."""

    async def sleep(seconds: float) -> None:
        pytest.fail(f"waited for {seconds} s")

    async with asking(answering(503, b"", retry_after="60"), sleep=sleep) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.entities.counts()
    assert caught.value.retry_after is not None
    assert caught.value.retry_after.total_seconds() == 60


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ("0", 0, 0),
        ("3", 3, 3),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 10**9, 10**12),
        ("9" * 30, 10**9, 10**9),
        ("soon", None, None),
        ("", None, None),
        ("-1", None, None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(given: str, least: float | None, most: float | None) -> None:
    """Both forms of RFC 9110 are read; any other value counts as absent."""
    async with asking(answering(503, b"", retry_after=given), retry=Retry(attempts=1)) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.entities.counts()
    wait = caught.value.retry_after
    if least is None or most is None:
        assert wait is None
    else:
        assert wait is not None
        assert least <= wait.total_seconds() <= most


@pytest.mark.parametrize(
    ("status", "attempts"), [(429, 3), (502, 3), (503, 3), (504, 3), (500, 1), (404, 1), (401, 1)]
)
async def test_only_what_passes_is_sent_again(status: int, attempts: int) -> None:
    """A read is repeated after temporary statuses only."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async with asking(answering(status, b"<html>"), sleep=sleep, retry=Retry(attempts=3)) as client:
        with pytest.raises(ProblemError) as caught:
            await client.entities.counts()
    assert caught.value.status == status
    assert len(waits) == attempts - 1


async def test_a_service_without_a_database_is_unavailable() -> None:
    """The service's own 503 names the outage and when to retry; `ready` asks once."""
    async with client_in_process(read_settings({"database_url": NOWHERE})) as client:
        with pytest.raises(UnavailableError, match="503 Service Unavailable: ") as caught:
            await client.ready()
    assert caught.value.retry_after is not None
    assert caught.value.correlation_id is not None


async def test_a_stream_that_the_database_fails_says_how_far_it_came() -> None:
    """A stream during a database outage raises InterruptedStreamError with the committed lines."""
    async with client_in_process(read_settings({"database_url": NOWHERE})) as client:
        with pytest.raises(InterruptedStreamError) as caught:
            await client.events.stream(life())
    assert caught.value.committed_lines == 0


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"\xff\xfe", b"[]", b"{}", json.dumps({"domain": 1, "counts": {}, "total": 0}).encode()]
)
@pytest.mark.parametrize("status", [200, 302])
async def test_an_answer_of_another_server_is_unexpected(status: int, body: bytes) -> None:
    """An answer that this service never gives raises UnexpectedAnswerError."""
    async with asking(answering(status, body, location="/elsewhere")) as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.entities.counts()


async def test_a_stream_that_leads_elsewhere_is_unexpected() -> None:
    """A redirect of a stream raises an error, and does not look like an empty stream."""
    async with asking(answering(302, b"", location="/elsewhere")) as client:
        with pytest.raises(UnexpectedAnswerError, match="/elsewhere"):
            await anext(client.entities.stream())


async def test_an_answer_that_cannot_be_unpacked_is_unexpected() -> None:
    """A body that does not fit its content coding raises UnexpectedAnswerError, whole or as a stream."""
    async with asking(answering(200, b"no gzip", content_encoding="gzip")) as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.entities.counts()
        with pytest.raises(UnexpectedAnswerError):
            await anext(client.entities.stream())


@pytest.mark.parametrize("body", [b"", b'{"line": 1}\n', b'{"summary": {}}\n', b"{}\n"])
async def test_a_stream_without_a_summary_is_unexpected(body: bytes) -> None:
    """An answer to a stream of events without its summary raises UnexpectedAnswerError."""
    async with asking(answering(200, body)) as client:
        with pytest.raises(UnexpectedAnswerError):
            await client.events.stream([])


@pytest.mark.parametrize("url", ["service:8000", "ftp://service"])
async def test_an_address_of_no_service_is_said_at_once(url: str) -> None:
    """An address that httpx cannot use raises an error at the first call, which is not repeated."""

    async def sleep(seconds: float) -> None:
        pytest.fail(f"waited for {seconds} s")

    async with Client(url, sleep=sleep) as client:
        with pytest.raises(ConnectionFailedError) as caught:
            await client.entities.counts()
    assert not caught.value.perhaps_done


async def test_a_secret_in_the_address_is_not_told() -> None:
    """A password in the address appears in no message."""
    async with Client("http://someone:secret@127.0.0.1:1", retry=Retry(attempts=1)) as client:
        with pytest.raises(ConnectionFailedError) as caught:
            await client.entities.counts()
    assert "secret" not in str(caught.value)


async def test_a_problem_of_something_in_between_has_its_status() -> None:
    """An error without a problem document still has a status, a title and a message."""
    async with asking(answering(404, b"<html>nothing here</html>")) as client:
        with pytest.raises(NotFoundError, match="404 Not Found") as caught:
            await client.entities.counts()
    assert (caught.value.type, caught.value.detail, caught.value.errors) == ("about:blank", "", [])


async def test_a_service_that_is_killed_and_started_again_is_not_noticed(database_url: str, tmp_path: Path) -> None:
    """Events and reads that meet a killed service succeed on the next one."""
    events = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(40)]
    with serving(tmp_path, database_url=database_url) as first:
        async with Proxy(first.url) as proxy:
            back = asyncio.Event()

            async def sleep(_seconds: float) -> None:
                await back.wait()

            async with Client(proxy.url, sleep=sleep) as client:
                await client.events.send_all(events[:20])
                sending = asyncio.gather(*(client.events.send(event) for event in events[20:]))
                await asyncio.sleep(0)
                first.signal(signal.SIGKILL)
                first.process.wait()
                with serving(tmp_path, database_url=database_url) as second:
                    proxy.target = second.url
                    back.set()
                    results = await sending
                    assert {result.version for result in results} == {1}
                    assert (await client.entities.counts()).total == 40
