"""A feed on a database of its own, and changes to follow."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from app.feed.feed import CONNECTIONS, Feed
from app.feed.follow import Follow
from app.store.database import Database

MOST = 50  # followers


@pytest.fixture
async def feed_database(database_url: str) -> AsyncIterator[Database]:
    """The database connections of a feed."""
    database = Database(database_url, pool_size=CONNECTIONS, statement_timeout=timedelta(seconds=5))
    yield database
    await database.close()


@pytest.fixture
async def feed(feed_database: Database) -> AsyncIterator[Feed]:
    """A feed."""
    feed = Feed(feed_database, most=MOST)
    yield feed
    await feed.close()


@pytest.fixture
def follow(feed: Feed, feed_database: Database) -> Follow:
    """The answers that this feed gives to followers."""
    return Follow(feed, feed_database)
