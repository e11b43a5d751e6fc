"""A process with several concurrent writers of changes: `python -m tests.feed.writing URL SEED SECONDS`.

Each writer changes some entities repeatedly, by the version guard only or with locked rows, and sometimes keeps its
transaction open. Some transactions are rolled back.
"""

import asyncio
import random
import sys
import time
from datetime import timedelta
from uuid import UUID

from msgspec.structs import replace

from app.domain.changes import Change, ChangeOutcome, change
from app.domain.events import key_of
from app.domain.folding import Save
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.store import changes
from app.store.database import Connection, Database, LostRaceError
from app.store.registrations import REGISTRATIONS
from tests.making import node, row

WRITERS = 5  # in a process
ENTITIES = [node(number) for number in range(40)]
HELD = 0.03  # seconds that a transaction is kept open at most
STATES = (RegistrationState.ACTIVE, RegistrationState.AWAITING_ACK)
SLICE_SECONDS = 2  # short, so that a run writes to several slices


class GivenUpError(Exception):
    """Rolls a transaction back on purpose."""


def after(read: Registration | None, entity_id: UUID) -> Registration:
    """The row after one more event."""
    if read is None:
        return row(STATES[0], entity_id=entity_id, last_applied_sequence=1, version=1)
    state = STATES[read.version % 2]
    return replace(read, current_state=state, last_applied_sequence=read.version + 1, version=read.version + 1)


def logged(read: Registration | None, now: Registration) -> Change:
    """The change between two rows."""
    return change(
        read, now, now.last_applied_event_id, "registration.recorded", ChangeOutcome.APPLIED, now.updated_at
    )


async def write(connection: Connection, entities: list[UUID], *, lock: bool) -> None:
    """Raise these entities' versions by one, one of them twice; raises LostRaceError."""
    rows = await REGISTRATIONS.get_entity_states(connection, [(each, "registration") for each in entities], lock=lock)
    saves, made = [], []
    for entity_id in entities:
        read = rows.get(key_of(entity_id, "registration"))
        now = after(read, entity_id)
        made.append(logged(read, now))
        if len(entities) == 1:
            made.append(logged(now, further := after(now, entity_id)))
            now = further
        saves.append(Save(now, read))
    await REGISTRATIONS.upsert.save(connection, saves, log=changes.given(made, SLICE_SECONDS))


async def write_on(database: Database, seed: int, until: float) -> None:
    """Run one writer."""
    dice = random.Random(seed)
    while time.monotonic() < until:
        entities = dice.sample(ENTITIES, dice.choice((1, 1, 2, 5)))
        lock = dice.random() < 0.5
        held, given_up = dice.random() * HELD, dice.random() < 0.1

        async def work(
            connection: Connection,
            entities: list[UUID] = entities,
            lock: bool = lock,
            held: float = held,
            given_up: bool = given_up,
        ) -> None:
            await write(connection, entities, lock=lock)
            await asyncio.sleep(held)
            if given_up:
                raise GivenUpError

        try:
            if dice.random() < 0.3:
                await database.write_alone(write, entities, lock=False)
            else:
                await database.write(work)
        except (LostRaceError, GivenUpError):
            await asyncio.sleep(0)


async def main(url: str, seed: int, seconds: float) -> None:
    """Write for this many seconds."""
    database = Database(url, pool_size=WRITERS, statement_timeout=timedelta(seconds=20))
    until = time.monotonic() + seconds
    try:
        await asyncio.gather(*(write_on(database, seed * 100 + number, until) for number in range(WRITERS)))
    finally:
        await database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
