"""The number of dead letters; their retries and removals are tested in tests/api/test_dead_letters.py."""

import pytest

from app.store import dead_letters
from app.store.database import Connection, Database
from app.store.dead_letters import Letter


@pytest.mark.parametrize(("counted", "number"), [(11, 10), (10, 10), (5, 10), (2, 10), (10_000, 0)])
async def test_dead_letters_are_counted_or_estimated(
    database: Database, monkeypatch: pytest.MonkeyPatch, counted: int, number: int
) -> None:
    """Dead letters beyond the counted ones are estimated by their ids: exactly if the ids have no gaps."""
    monkeypatch.setattr(dead_letters, "COUNTED", counted)

    async def work(connection: Connection) -> int:
        letters = [Letter(topic="nodes", key=None, value=None, headers=[], error="") for _ in range(number)]
        await dead_letters.add(connection, letters)
        return await dead_letters.count(connection)

    assert await database.write(work) == number
