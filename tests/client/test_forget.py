"""Forgetting and evictions with the client."""

import pytest

from app.domain.positions import Position
from app.domain.states import RegistrationState
from pqs_client import Client, ForgottenError, NotFoundError, PreconditionFailedError
from tests.making import NODE, life, node


async def test_a_forgotten_entity_is_gone(pqs: Client) -> None:
    """Its reads say so, and since when; one without a row needs a position."""
    await pqs.events.send_all(life())
    answer = await pqs.entities.forget(NODE, reason="moved", erase=True)
    assert (answer.entity_id, answer.version, answer.stands_at) == (NODE, 6, Position(sequence=5))
    assert answer.erased is not None
    assert answer.erased.changes == 5
    for read in (pqs.entities.get, pqs.entities.state, pqs.entities.wait, pqs.entities.deregister):
        with pytest.raises(ForgottenError) as caught:
            await read(NODE)
        assert (caught.value.forgotten_at, caught.value.permanent) == (answer.forgotten_at, False)
        assert caught.value.reason is None
    with pytest.raises(NotFoundError):
        await pqs.entities.forget(node(1))
    answer = await pqs.entities.forget(node(1), permanent=True, position=Position(sequence=7))
    assert (answer.permanent, answer.stands_at) == (True, Position(sequence=7))


async def test_a_node_is_evicted(pqs: Client) -> None:
    """Its registration ends once; then there is nothing to end."""
    await pqs.events.send_all(life())
    answer = await pqs.entities.deregister(NODE, reason="replaced")
    assert (answer.outcome, answer.current_state, answer.version) == (
        "applied",
        RegistrationState.LIVENESS_EXPIRED,
        6,
    )
    assert [event.type for event in answer.events] == ["registration.liveness_expired"]
    answer = await pqs.entities.deregister(NODE)
    assert (answer.outcome, answer.version) == ("ignored", 6)
    assert answer.reason
    with pytest.raises(NotFoundError):
        await pqs.entities.deregister(node(1))


async def test_an_act_is_for_the_row_that_was_read(pqs: Client) -> None:
    """Both acts take it: where the row has changed since, nothing is done."""
    first, *others = life()
    await pqs.events.send(first)
    known = await pqs.entities.get(NODE)
    await pqs.events.send_all(others)
    for act in (pqs.entities.forget, pqs.entities.deregister):
        with pytest.raises(PreconditionFailedError):
            await act(NODE, known=known)
    row = await pqs.entities.get(NODE)
    assert row.current_state is RegistrationState.ACTIVE
    assert (await pqs.entities.forget(NODE, known=row)).version == row.version + 1
