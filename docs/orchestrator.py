"""Escalates nodes that did not acknowledge in time, each step once, however many of these programs run."""

import asyncio
import sys
from datetime import UTC, datetime
from functools import partial
from uuid import UUID

from pqs_client import (
    Client,
    FollowedChange,
    FollowedRow,
    GoneError,
    NotFoundError,
    Registration,
    RegistrationState,
    State,
)

STEPS = [(0, "remind"), (60, "tell an operator"), (600, "give up")]  # from so many seconds overdue on
WAITING = [RegistrationState.ACCEPTED, RegistrationState.AWAITING_ACK]
WATCHED = [*WAITING, RegistrationState.ACK_TIMED_OUT]


def deadline_of(row: Registration) -> datetime | None:
    """The time by which the node must acknowledge, or had to; None if it is not late and will not be."""
    if row.current_state in WAITING:
        return row.ack_deadline
    emitted_at = row.ack_timeout_emitted_at  # an event has said that the deadline passed: a sweep's
    if row.current_state is RegistrationState.ACK_TIMED_OUT and row.ack_deadline and emitted_at:
        return row.ack_deadline if row.ack_deadline < emitted_at else None  # else the node left before its deadline
    return None


def mark(step: str, deadline: str, state: State) -> State | None:
    """The workflow's state with this step done for this deadline, or None: it was done already."""
    return None if state.get(step) == deadline else {**state, step: deadline}


async def escalate(client: Client, entity_id: UUID, turns: asyncio.Semaphore) -> None:
    """Carry out the steps of a node, each when it is due, for as long as the node is late."""
    while True:
        async with turns:
            try:
                deadline = deadline_of(await client.entities.get(entity_id))
            except (NotFoundError, GoneError):
                return
            if deadline is None:
                return
            overdue = (datetime.now(UTC) - deadline).total_seconds()
            if due := [name for seconds, name in STEPS if seconds <= overdue]:
                done = partial(mark, due[-1], str(deadline))
                if await client.workflows.update(f"ack/{entity_id}", done, initial={}):
                    print(due[-1], entity_id, flush=True)  # this process committed the step, so it carries it out
        later = [seconds for seconds, _ in STEPS if seconds > overdue]
        if not later:
            return
        await asyncio.sleep(later[0] - overdue)


async def main(url: str) -> None:
    turns, watches = asyncio.Semaphore(20), dict[UUID, asyncio.Task[None]]()
    async with Client(url) as client, asyncio.TaskGroup() as group:
        async for news in client.changes(snapshot=True, state=WATCHED):
            if isinstance(news, FollowedRow | FollowedChange):
                if (watch := watches.pop(news.entity_id, None)) is not None:
                    watch.cancel()
                if news.current_state in WATCHED:
                    watches[news.entity_id] = group.create_task(escalate(client, news.entity_id, turns))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
