"""Forgetting with the client."""

import pytest

from app.domain.positions import Position
from pqs_client import Client, GoneError, NotFoundError
from tests.making import NODE, life, node


async def test_a_forgotten_entity_is_gone(pqs: Client) -> None:
    """Its reads say so; one without a row needs a position."""
    await pqs.events.send_all(life())
    answer = await pqs.entities.forget(NODE, reason="moved", erase=True)
    assert (answer.entity_id, answer.version, answer.stands_at) == (NODE, 6, Position(sequence=5))
    assert answer.erased is not None
    for read in (pqs.entities.get, pqs.entities.state):
        with pytest.raises(GoneError):
            await read(NODE)
    with pytest.raises(NotFoundError):
        await pqs.entities.forget(node(1))
    answer = await pqs.entities.forget(node(1), permanent=True, position=Position(sequence=7))
    assert (answer.permanent, answer.stands_at) == (True, Position(sequence=7))
