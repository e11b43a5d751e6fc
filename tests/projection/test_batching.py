"""Batching: concurrent single requests share a statement, and nothing else."""

import asyncio

import pytest

from app.domain.results import Outcome
from app.projection.batching import Reader, Writer
from app.projection.projector import Projector
from app.store.database import Database
from tests.making import NODE, WAY_TO_ACTIVE, event, node


async def test_joined_reads_answer_each_with_its_own_row(database: Database, projector: Projector) -> None:
    """Of a hundred concurrent readers each gets its own row, or nothing if it has none; domains are separate."""
    nodes = [node(number) for number in range(50)]
    await projector.persist([event("registration.initiated", 1, entity_id=each) for each in nodes])
    reader = Reader(database, joining=True)
    found = await asyncio.gather(
        *(reader.ask(each, "registration") for each in nodes), *(reader.ask(each, "other") for each in nodes)
    )
    assert [row.entity_id for row in found[:50] if row is not None] == nodes
    assert found[50:] == [None] * 50


@pytest.mark.parametrize("joining", [True, False])
async def test_joined_events_of_one_entity_are_taken_in_in_the_order_of_arrival(
    database: Database, projector: Projector, joining: bool
) -> None:
    """The five events of a registration, sent in order without waiting, all apply in one batch."""
    writer = Writer(projector, joining=joining)
    tasks = []
    for sequence, type_ in enumerate(WAY_TO_ACTIVE, start=1):
        task = writer.ask(event(type_, sequence))
        await asyncio.sleep(0)
        tasks.append(task)
        if not joining:
            await task
    assert [result.outcome for result in await asyncio.gather(*tasks)] == [Outcome.APPLIED] * 5
    row = await Reader(database, joining=joining).ask(NODE, "registration")
    assert row is not None
    assert row.version == 5


async def test_a_repeat_in_the_same_batch_is_a_duplicate(projector: Projector) -> None:
    """Of the same event sent twenty times at once, one is applied."""
    writer = Writer(projector, joining=True)
    one = event("registration.initiated", 1)
    results = await asyncio.gather(*(writer.ask(one) for _ in range(20)))
    outcomes = [result.outcome for result in results]
    assert outcomes.count(Outcome.APPLIED) == 1
    assert outcomes.count(Outcome.DUPLICATE) == 19
