"""Following with the client: everything once, across broken connections, pauses and lost places."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest

from app.domain.changes import Logging
from app.domain.states import RegistrationState
from app.feed import follow as server
from app.settings import Settings
from pqs_client import (
    Bookmark,
    Client,
    ConnectionFailedError,
    FollowedChange,
    FollowedRow,
    GoneError,
    News,
    NotFoundError,
    ProblemError,
    Reset,
    Retry,
    UnexpectedAnswerError,
    UnreadableError,
)
from tests.client.conftest import answering, asking, client_in_process
from tests.client.proxy import Proxy
from tests.making import NODE, WAY_TO_ACTIVE, event_json, life, node, when

PATIENCE = 20.0  # seconds
FAST = Retry(attempts=3, base=0.01, cap=0.05)


async def first(client: Client, count: int, **given: object) -> list[News]:
    """The first things that are told, without the bookmarks."""
    seen: list[News] = []
    async with asyncio.timeout(PATIENCE), aclosing(client.changes(**given)) as news:  # type: ignore[arg-type]  # as they come
        async for each in news:
            if not isinstance(each, Bookmark):
                seen.append(each)
            if len(seen) == count:
                break
    return seen


def versions(seen: list[News]) -> list[int]:
    """The versions of the changes and rows."""
    return [each.version for each in seen if isinstance(each, FollowedChange | FollowedRow)]


@pytest.fixture(autouse=True)
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams of the service in this process end at once, as they do after ten minutes: its transport has no end."""
    monkeypatch.setattr(server, "STREAM", 0.0)


async def test_what_changes_is_told_in_order(pqs: Client) -> None:
    """From the beginning, from a place, and by filters."""
    await pqs.events.send_all(life())
    seen = await first(pqs, 5)
    assert versions(seen) == [1, 2, 3, 4, 5]
    [change] = [each for each in seen[2:3] if isinstance(each, FollowedChange)]
    assert (change.entity_id, change.type, change.before) == (NODE, WAY_TO_ACTIVE[2], RegistrationState.ACCEPTED)
    assert versions(await first(pqs, 2, after=change.next)) == [4, 5]
    assert versions(await first(pqs, 1, state=[RegistrationState.ACTIVE], entity_id=[NODE])) == [5]
    assert versions(await first(pqs, 1, type_=["registration.accepted"], node_type="compute")) == [2]


async def test_streams_follow_each_other_without_a_gap(pqs: Client) -> None:
    """When one ends the next begins after it, and a place is told also where nothing changes."""
    seen: list[int] = []
    bookmarks = 0
    async with asyncio.timeout(PATIENCE), aclosing(pqs.changes(after="now")) as news:
        async for each in news:
            if isinstance(each, FollowedChange):
                seen.append(each.version)
            else:
                bookmarks += 1
                await pqs.events.send(life()[len(seen)])
            if len(seen) == 5:
                break
    assert seen == [1, 2, 3, 4, 5]
    assert bookmarks >= 5


async def test_a_snapshot_comes_first(pqs: Client) -> None:
    """Rows, and then what changes; it goes on where it was left."""
    for number in range(3):
        await pqs.events.send_all(life(node(number)))
    seen = await first(pqs, 3, snapshot=True)
    assert [type(each) for each in seen] == [FollowedRow] * 3
    await pqs.events.send(event_json("registration.liveness_expired", 6, entity_id=node(1)))
    last = seen[-1]
    assert isinstance(last, FollowedRow)
    assert versions(await first(pqs, 1, after=last.next)) == [6]


async def test_a_lost_place_is_a_reset_and_a_snapshot(pqs: Client, database_url: str) -> None:
    """A change that is not in the log any more: the follower hears of it, and gets all rows."""
    await pqs.events.send_all(life())
    place = (await first(pqs, 1))[0]
    assert isinstance(place, FollowedChange)
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE changes SET mark = mark - 1")
    await connection.close()
    reset, row = await first(pqs, 2, after=place.next)
    assert reset == Reset("history")
    assert isinstance(row, FollowedRow)
    assert (row.entity_id, row.version) == (NODE, 5)


async def test_a_reset_in_a_stream_is_the_same() -> None:
    """A place can be lost while it is followed. Then the client asks for a snapshot."""
    asked: list[bytes] = []
    reset = b'{"kind":"reset","type":"urn:pqs:problem:changes-gone","reason":"expired","oldest":"x","snapshot":"y"}\n'

    async def app(scope: dict[str, bytes], receive: object, send: object) -> None:
        asked.append(scope["query_string"])
        body = reset if len(asked) == 1 else b'{"kind":"bookmark","next":"there"}\n'
        await answering(200, body)(scope, receive, send)

    seen: list[News] = []
    async with asking(app) as client, aclosing(client.changes(after="here")) as news:
        async for each in news:
            seen.append(each)
            if len(seen) == 3:
                break
    assert seen == [Reset("expired"), Bookmark("there"), Bookmark("there")]
    assert b"after=here" in asked[0]
    assert b"snapshot=true" in asked[1]
    assert b"after" not in asked[1]
    assert b"after=there" in asked[2]
    assert b"snapshot" not in asked[2]


async def test_errors_are_raised_before_the_first_answer() -> None:
    """As by any call; afterwards those that pass are bridged, and others are raised."""
    answers = [(200, b'{"kind":"bookmark","next":"a"}\n'), (503, b""), (200, b""), (502, b""), (401, b"")]

    async def app(scope: object, receive: object, send: object) -> None:
        status, body = answers.pop(0)
        await answering(status, body)(scope, receive, send)

    once = Retry(attempts=1, base=0.001)
    async with asking(app, retry=once) as client:
        with pytest.raises(ProblemError, match="401"):
            [each async for each in client.changes()]
    assert answers == []
    for status, body, error in (
        (503, b"", ProblemError),
        (200, b"", ConnectionFailedError),
        (200, b"<p>\n", UnexpectedAnswerError),
    ):
        async with asking(answering(status, body), retry=once) as client:
            with pytest.raises(error):
                await first(client, 1)


async def test_a_damaged_place_is_an_error(pqs: Client) -> None:
    """It is not begun anew: somebody has stored it wrongly."""
    with pytest.raises(UnreadableError):
        await first(pqs, 1, after="damaged")


async def test_broken_connections_lose_nothing(proxy: Proxy) -> None:
    """Cut again and again, the follower sees each change once, in order."""
    seen: list[tuple[UUID, int]] = []
    entities = [node(number) for number in range(20)]

    async def write() -> AsyncIterator[None]:
        for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=1):
            await direct.events.send_all(event_json(type_, sequence, entity_id=each) for each in entities)
            yield

    async with (
        Client(proxy.target) as direct,
        Client(proxy.url, retry=FAST) as client,
        asyncio.timeout(PATIENCE),
        aclosing(client.changes(after="now")) as news,
    ):
        writing = write()
        async for each in news:
            if isinstance(each, FollowedChange):
                seen.append((each.entity_id, each.version))
            if len(seen) % len(entities) == 0 and len(seen) < 100:
                proxy.lose_answers = 1  # what comes next is lost with its connection
                with suppress(StopAsyncIteration):
                    await anext(writing)
            if len(seen) == 100:
                break
    assert len(set(seen)) == 100
    assert proxy.lose_answers == 0
    assert all([version for id_, version in seen if id_ == each] == [1, 2, 3, 4, 5] for each in entities)


async def test_looking_back(pqs: Client, settings: Settings) -> None:
    """A history, an event, and a state at a time."""
    sent = life()
    await pqs.events.send_all(sent)
    pages = [page async for page in pqs.entities.history(NODE, limit=2, order="desc")]
    assert [[each.version for each in page.items] for page in pages] == [[5, 4], [3, 2], [1]]
    assert all(page.complete for page in pages)
    found = await pqs.event(UUID(sent[-1]["event_id"]))
    assert [each.current_state for each in found.changes] == [RegistrationState.ACTIVE]
    assert [row.version for row in found.rows] == [5]
    with pytest.raises(NotFoundError):
        await pqs.event(NODE)
    states = RegistrationState
    assert await pqs.entities.state_at(NODE, when(2.5), clock="occurred") is states.ACCEPTED
    assert await pqs.entities.state_at(NODE, datetime.now(UTC) + timedelta(hours=1)) is states.ACTIVE
    with pytest.raises(NotFoundError):
        await pqs.entities.state_at(NODE, when(1))
    async with client_in_process(settings.model_copy(update={"changes": Logging.OFF})) as off:
        await off.events.send(event_json("registration.initiated", 1, entity_id=node(9)))
    with pytest.raises(GoneError) as gone:
        await pqs.entities.state_at(node(9), when(1))
    assert gone.value.reason is None
    assert gone.value.type == "urn:pqs:problem:history-gone"
