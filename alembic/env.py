"""Runs the migrations, on a given connection or on the database of PQS_DATABASE_URL.

Each revision is a transaction of its own, so that it can end it for a concurrent index build.
"""

import asyncio
import os

from sqlalchemy import Connection

from alembic import context
from app.store.access_tables import METADATA
from app.store.schema import create_engine

LOCK_TIMEOUT = "5s"  # a migration that waits for a lock delays every session behind it, so it gives up


def run(connection: Connection) -> None:
    """Bring the schema to the requested revision."""
    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    connection.exec_driver_sql("SET statement_timeout = 0")
    connection.commit()
    context.configure(connection=connection, target_metadata=METADATA, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()


async def run_from_environment() -> None:
    """For the `alembic` command: connect by PQS_DATABASE_URL."""
    engine = create_engine(os.environ["PQS_DATABASE_URL"], pool_size=1)
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_from_environment())
