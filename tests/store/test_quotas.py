"""Quotas of workflow prefixes: the use counted, the writes refused, and concurrent writers."""

import asyncio
import json

import pytest

from app.store import quotas
from app.store.database import Connection, Database
from app.store.quotas import Quota, QuotaExceededError

WRITE = """
    INSERT INTO workflow_state (workflow_key, version, state, updated_at, provenance)
    VALUES ($1, 1, $2, now(), '{"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}')
    ON CONFLICT (workflow_key) DO UPDATE SET version = workflow_state.version + 1, state = excluded.state
"""


def state(size: int) -> str:
    """A state of this many bytes as PostgreSQL writes it."""
    text = json.dumps({"x": "y" * (size - 9)})
    assert len(text) == size
    return text


async def commit(database: Database, key: str, size: int) -> None:
    """Write a workflow as a commit does, and account for its size."""

    async def work(connection: Connection) -> None:
        before = await quotas.sizes(connection, [key])
        await connection.execute(WRITE, key, state(size))
        after = await quotas.sizes(connection, [key])
        await quotas.charge(connection, {key: after[key] - before.get(key, 0)})

    await database.write(work)


async def test_a_quota_begins_with_what_is_in_use(database: Database) -> None:
    """A new quota counts the workflows of its prefix, byte for byte; setting it again counts again."""
    for key, size in (("team/a", 100), ("team/b", 50), ("tea", 30), ("team_x", 20)):
        await commit(database, key, size)
    await database.write(quotas.set_quota, "team/", 1000)
    await database.write(quotas.set_quota, "tea", 500)
    assert await database.read(quotas.get_all) == [Quota("tea", 500, 200), Quota("team/", 1000, 150)]
    await database.write(quotas.set_quota, "team/", 160)
    assert (await database.read(quotas.get_all))[1] == Quota("team/", 160, 150)
    assert await database.write(quotas.remove_quota, "tea") is True
    assert await database.write(quotas.remove_quota, "tea") is False


async def test_what_is_over_the_quota_is_refused(database: Database) -> None:
    """A write over the quota is refused; other prefixes, and states that shrink, are not."""
    await database.write(quotas.set_quota, "team/", 100)
    await commit(database, "team/a", 90)
    with pytest.raises(QuotaExceededError, match=r"^the workflows that begin with 'team/' may take up 100 bytes: "):
        await commit(database, "team/b", 20)
    await commit(database, "other", 5000)
    await commit(database, "team/a", 100)
    await database.write(quotas.set_quota, "team/", 10)
    await commit(database, "team/a", 95)
    with pytest.raises(QuotaExceededError):
        await commit(database, "team/a", 96)
    assert await database.read(quotas.get_all) == [Quota("team/", 10, 95)]
    assert await database.read(quotas.sizes, ["team/a", "team/b", "other"]) == {"team/a": 95, "other": 5000}


async def test_every_prefix_of_a_key_counts(database: Database) -> None:
    """Quotas may overlap; the empty prefix covers all workflows."""
    for prefix, most in (("", 300), ("team/", 200), ("team/a", 100)):
        await database.write(quotas.set_quota, prefix, most)
    await commit(database, "team/a", 90)
    await commit(database, "team/b", 90)
    with pytest.raises(QuotaExceededError, match="'team/' may take up 200"):
        await commit(database, "team/c", 90)
    await commit(database, "x", 90)
    with pytest.raises(QuotaExceededError, match="'' may take up 300"):
        await commit(database, "y", 90)
    assert [each.used_bytes for each in await database.read(quotas.get_all)] == [270, 180, 90]


async def test_writers_at_once_stay_below_the_quota(database: Database) -> None:
    """Of concurrent writers the first gets the space, and the final sum is correct."""
    await database.write(quotas.set_quota, "w", 500)
    done = await asyncio.gather(
        *(commit(database, f"w{number}", 100) for number in range(12)), return_exceptions=True
    )
    assert sum(each is None for each in done) == 5
    assert sum(isinstance(each, QuotaExceededError) for each in done) == 7
    assert await database.read(quotas.get_all) == [Quota("w", 500, 500)]


async def test_what_is_in_use_is_read_by_key(database: Database) -> None:
    """The size of a workflow is found by the primary key."""

    async def plan(connection: Connection) -> str:
        rows = await connection.fetch(f"EXPLAIN {quotas.SIZES.text}", ["team/a"])
        return "\n".join(row[0] for row in rows)

    assert "using workflow_state_pkey" in await database.read(plan)
