"""Events sent with the client to the whole application."""

import json
from collections.abc import AsyncIterator, Callable, Iterable
from uuid import UUID

import msgspec
import pytest

from app.domain.events import EVENT_TYPES, EventBase
from app.domain.positions import Position
from app.domain.results import Outcome
from app.domain.states import RegistrationState
from pqs_client import Client, ConflictError, EarlyError, InvalidError, LineResult, NotFoundError
from tests.making import NODE, Json, event, event_json, life, node

CORRELATION = UUID("3f0c1a52-7d7e-4f2b-9c63-5f1f0c8f2f7d")
RECORDED: Json = {"current_state": "active", "node_type": "storage", "registered_at": "2025-12-24T08:00:00Z"}

Making = Callable[..., Json | EventBase]


@pytest.mark.parametrize("make", [event_json, event])
async def test_an_event_goes_as_a_value_or_as_json(pqs: Client, make: Making) -> None:
    """An event value and a JSON object are both accepted, and the result has the row's position."""
    result = await pqs.events.send(make("registration.initiated", 1))
    assert (result.outcome, result.reason, result.version) == (Outcome.APPLIED, None, 1)
    assert result.current_state is RegistrationState.PENDING_REGISTRATION
    assert result.stands_at == Position(sequence=1)
    assert (await pqs.events.send(make("registration.initiated", 1))).outcome is Outcome.DUPLICATE
    assert (await pqs.events.send(make("node.heartbeat", 0))).outcome is Outcome.STALE
    assert (await pqs.events.send(make("registration.activated", 2))).outcome is Outcome.IGNORED


async def test_a_trigger_names_what_followed(pqs: Client) -> None:
    """`events` lists an applied trigger's events in order, is empty for an ignored one, and None for a fact."""
    first = await pqs.events.send(event_json("node.introspected", 1))
    assert first.events is not None
    assert [each.type for each in first.events] == [
        "registration.initiated",
        "registration.accepted",
        "registration.ack_requested",
    ]
    assert len({each.event_id for each in first.events}) == 3
    assert (await pqs.events.send(event_json("node.introspected", 2))).events == []
    assert (await pqs.events.send(event_json("node.heartbeat", 3))).events is None
    batch = await pqs.events.send_all([event_json("node.registration_acked", 4)])
    assert [each.type for each in batch.results[0].events or []] == [
        "registration.ack_received",
        "registration.activated",
    ]


@pytest.mark.parametrize("type_", EVENT_TYPES)
async def test_every_event_type_is_read_as_it_was_sent(pqs: Client, type_: str) -> None:
    """Values of each event type are valid for the service: in a dry run none is invalid."""
    data = RECORDED if type_ == "registration.recorded" else None
    result = await pqs.events.send(event(type_, 1, data=data), dry_run=True)
    assert result.event_id == event(type_, 1, data=data).event_id


async def test_an_early_event_says_where_the_row_stands(pqs: Client) -> None:
    """An early event raises EarlyError, with the row's position and the time to wait."""
    await pqs.events.send_all(life()[:2])
    with pytest.raises(EarlyError) as caught:
        await pqs.events.send(event_json("node.heartbeat", 5, position={"sequence": 5, "previous": 4}))
    error = caught.value
    assert error.stands_at == Position(sequence=2)
    assert error.result is not None
    assert error.result.outcome is Outcome.EARLY
    assert error.retry_after is not None
    assert error.retry_after.total_seconds() == 1


async def test_a_conflict_says_where_the_row_stands(pqs: Client) -> None:
    """Another event at the row's position raises ConflictError, not EarlyError."""
    await pqs.events.send_all(life()[:2])
    with pytest.raises(ConflictError) as caught:
        await pqs.events.send(event_json("node.heartbeat", 2))
    error = caught.value
    assert not isinstance(error, EarlyError)
    assert error.stands_at == Position(sequence=2)
    assert error.result is not None
    assert error.result.outcome is Outcome.CONFLICT


async def test_an_early_event_of_an_unknown_entity_stands_nowhere(pqs: Client) -> None:
    """Without a row, an early event's `stands_at` is None."""
    with pytest.raises(EarlyError) as caught:
        await pqs.events.send(event_json("node.heartbeat", 5, position={"sequence": 5, "previous": 4}))
    assert caught.value.stands_at is None


async def test_an_array_has_results_in_the_order_sent(pqs: Client) -> None:
    """An array is folded by position and answered in the order sent; no outcome raises an error."""
    events = [*reversed(life()), event_json("node.heartbeat", 9, position={"sequence": 9, "previous": 8})]
    batch = await pqs.events.send_all(events)
    assert [result.outcome for result in batch.results] == [*[Outcome.APPLIED] * 5, Outcome.EARLY]
    assert [str(result.event_id) for result in batch.results] == [each["event_id"] for each in events]
    assert (batch.summary.received, batch.summary.applied, batch.summary.early) == (6, 5, 1)


async def test_an_array_with_one_that_is_wrong_names_it(pqs: Client) -> None:
    """An invalid item of an array raises an InvalidError that points at it, and no event is applied."""
    with pytest.raises(InvalidError) as caught:
        await pqs.events.send_all([life()[0], life()[1] | {"position": {"offset": 7}}])
    assert [fault.pointer for fault in caught.value.errors] == ["#/1/position"]
    with pytest.raises(NotFoundError):
        await pqs.entities.get(NODE)


async def test_a_dry_run_writes_nothing(pqs: Client) -> None:
    """A dry run gives the outcomes of one event or an array, and writes no row."""
    assert (await pqs.events.send(life()[0], dry_run=True)).outcome is Outcome.APPLIED
    assert (await pqs.events.send_all(life(), dry_run=True)).summary.applied == 5
    with pytest.raises(NotFoundError):
        await pqs.entities.get(NODE)


async def in_pieces(events: Iterable[Json]) -> AsyncIterator[Json]:
    """Events that arrive piece by piece."""
    for each in events:
        yield each


@pytest.mark.parametrize("wrap", [iter, in_pieces])
async def test_a_stream_is_taken_in_in_order(pqs: Client, wrap: Callable[[Iterable[Json]], Iterable[Json]]) -> None:
    """A sync or async iterable of events is sent as lines; `on_line` gets the lines that were not applied."""
    count = 2500  # more than one chunk
    events = [event_json("registration.initiated", 1, entity_id=node(number)) for number in range(count)]
    events += [events[3], {"type": "nothing"}, *life()[:2]]
    told: list[LineResult] = []
    summary = await pqs.events.stream(wrap(events), on_line=told.append)
    assert (summary.received, summary.applied) == (count + 4, count + 2)
    assert (summary.duplicate, summary.invalid) == (1, 1)
    assert [(line.line, line.outcome) for line in told] == [(count + 1, "duplicate"), (count + 2, "invalid")]
    assert told[0].entity_id == node(3)
    assert told[0].stands_at == Position(sequence=1)
    assert told[1].errors[0].pointer == "#/type"
    assert (await pqs.entities.state(NODE)) is RegistrationState.ACCEPTED


async def test_an_empty_stream_is_one_too(pqs: Client) -> None:
    """A stream without events has a summary of zeros."""
    assert (await pqs.events.stream([])).received == 0


async def test_the_correlation_id_is_stored(pqs: Client) -> None:
    """A call's correlation id is stored for events without one, whichever call sends them."""
    await pqs.events.send(life()[0], correlation_id=CORRELATION)
    assert (await pqs.entities.get(NODE)).correlation_id == CORRELATION
    await pqs.events.send_all(life(node(1)), correlation_id=CORRELATION)
    await pqs.events.stream(life(node(2)), correlation_id=CORRELATION)
    found = await pqs.entities.lookup([node(1), node(2)])
    assert [item.correlation_id for item in found.items] == [CORRELATION, CORRELATION]


def test_a_position_is_written_as_it_is_read() -> None:
    """A position with a partition is sent with its two fields only."""
    placed = event("node.heartbeat", 1, position={"partition": "p", "offset": 4})
    assert msgspec.json.decode(msgspec.json.encode(placed))["position"] == {"partition": "p", "offset": 4}


async def test_a_chunk_of_lines_has_a_result_for_each_that_was_not_applied(pqs: Client) -> None:
    """Lines are sent unchanged, with or without line ends, and results have line numbers."""
    lines = [json.dumps(each).encode() for each in (life()[0], life()[0], life()[1])]
    sent = await pqs.events.send_lines([lines[0] + b"\n", lines[1], b"no JSON", lines[2]])
    assert [(each.line, each.outcome) for each in sent.results] == [(2, "duplicate"), (3, "invalid")]
    assert sent.repeated == 0
