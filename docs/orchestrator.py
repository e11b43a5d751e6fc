"""Escalates nodes that did not acknowledge in time, each step once, however many of these programs run."""

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from functools import partial
from uuid import UUID

from pqs_client import Client, RegistrationState, State

STEPS = [(0, "remind"), (60, "tell an operator"), (600, "give up")]  # from so many seconds overdue on


async def late(client: Client) -> AsyncIterator[tuple[UUID, datetime, float]]:
    """Each node that did not acknowledge in time, its deadline, and how many seconds it is overdue."""
    async for page in client.overdue.ack():  # no event has said yet that the deadline passed
        now = page.as_of
        for node in page.items:
            if node.ack_deadline:
                yield node.entity_id, node.ack_deadline, node.overdue_seconds
    async for found in client.entities.pages(state=[RegistrationState.ACK_TIMED_OUT]):  # an event has: a sweep's
        for row in found.items:
            deadline, emitted_at = row.ack_deadline, row.ack_timeout_emitted_at
            if deadline and emitted_at and deadline < emitted_at:  # else the node left before its deadline
                yield row.entity_id, deadline, (now - deadline).total_seconds()


def mark(step: str, deadline: str, state: State) -> State | None:
    """The workflow's state with this step done for this deadline, or None: it was done already."""
    return None if state.get(step) == deadline else {**state, step: deadline}


async def main(url: str) -> None:
    async with Client(url) as client:
        while True:
            async for entity_id, deadline, overdue in late(client):
                step = [name for seconds, name in STEPS if seconds <= max(overdue, 0)][-1]
                done = partial(mark, step, str(deadline))
                if await client.workflows.update(f"ack/{entity_id}", done, initial={}):
                    print(step, entity_id, flush=True)  # this process committed the step, so it carries it out
            await asyncio.sleep(5)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
