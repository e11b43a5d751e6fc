"""Waiting with the client: for a row, a state, a version and a position, and in vain."""

import asyncio

import pytest

from app.domain.states import RegistrationState
from pqs_client import Client, LateError
from tests.making import NODE, life


async def test_a_wait_ends_with_what_it_waits_for(pqs: Client) -> None:
    """A row, a later version, a position, and a state, also where the entity has left it since."""
    sent = life()
    waiting = asyncio.create_task(pqs.entities.wait(NODE, 20))
    await asyncio.sleep(0.1)
    await pqs.events.send(sent[0])
    waited = await waiting
    assert waited is not None
    assert waited.row.version == 1
    waiting = asyncio.create_task(pqs.entities.wait(NODE, 20, until=[RegistrationState.ACK_RECEIVED]))
    later = asyncio.create_task(pqs.entities.wait(NODE, 20, after_version=1))
    await asyncio.sleep(0.1)
    await pqs.events.send_all(sent[1:])
    waited, after = await waiting, await later
    assert waited is not None
    assert (waited.reached, waited.row.current_state) == (4, RegistrationState.ACTIVE)
    assert after is not None
    assert after.row.version == 5
    there = await pqs.entities.wait(NODE, 0.1, min_sequence=5)
    assert there is not None
    assert there.row.version == 5


async def test_a_wait_in_vain_is_late(pqs: Client) -> None:
    """It says where the entity is; an unchanged version is no error. It is not tried again."""
    await pqs.events.send_all(life()[:2])
    assert await pqs.entities.wait(NODE, 0.2, after_version=2) is None
    for condition in ({"until": [RegistrationState.ACTIVE]}, {"min_sequence": 7}):
        with pytest.raises(LateError) as late:
            await pqs.entities.wait(NODE, 0.2, **condition)
        assert late.value.stands_at is not None
        assert late.value.stands_at.sequence == 2
    assert late.value.current is not None
    assert late.value.current.version == 2
