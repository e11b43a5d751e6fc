"""`pqs rebase` and `pqs verify`: work on rows by hand."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TypeVar
from uuid import UUID

import click
import msgspec

from app.cli.operators import operator
from app.cli.options import CHANGES, DATABASE, logged_settings, settings_options
from app.domain.events import DEFAULT_DOMAIN
from app.domain.positions import MAX_NUMBER, Position
from app.errors import StartError
from app.projection.changes import change_log_of
from app.runtime.database import database_of
from app.settings import Settings
from app.store import audit, changes
from app.store.audit import Act
from app.store.counts import Miscount
from app.store.database import LONG_TRANSACTIONS, Connection, Database
from app.store.overdue import now
from app.store.registrations import REGISTRATIONS

logger = logging.getLogger(__name__)

SAY_EVERY = 2.0  # seconds between two lines of progress
PAGE_TIMEOUT = timedelta(seconds=120)  # for a page of a full count

T = TypeVar("T")


@click.command()
@click.argument("entity_id", type=click.UUID)
@click.option("--domain", default=DEFAULT_DOMAIN, show_default=True, help="The entity's domain.")
@click.option("--sequence", type=click.IntRange(0, MAX_NUMBER), help="The new position: this sequence.")
@click.option("--partition", help="The new position: an offset of this partition.")
@click.option("--offset", type=click.IntRange(0, MAX_NUMBER), help="The offset in that partition.")
@settings_options(*DATABASE, *CHANGES)
def rebase(
    entity_id: UUID, domain: str, sequence: int | None, partition: str | None, offset: int | None, **given: str | None
) -> None:
    """Move an entity to another track, by hand: only its position and version change."""
    given_position = {"sequence": sequence, "partition": partition, "offset": offset}
    try:
        position = msgspec.convert(
            {name: value for name, value in given_position.items() if value is not None}, Position
        )
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error).replace("`", "")) from None
    if not (domain + (partition or "")).isprintable():  # bytes that are not UTF-8 arrive as lone surrogates
        raise click.UsageError("--domain and --partition take printable characters in UTF-8")
    settings = logged_settings(given)

    async def work(connection: Connection) -> str:
        moved = await REGISTRATIONS.rebase(connection, entity_id, domain, position)
        if moved is None:
            raise StartError(f"there is no entity {entity_id} in domain {domain}")
        before, after = moved
        log = change_log_of(settings)
        await changes.add(connection, log.rebased(before, after, await now(connection)), log.slice_seconds)
        target = f"{domain}/{entity_id}: from {before.position} to {after.position}"
        await audit.add(connection, Act(principal=operator(), action="rebase", target=target))
        return f"{entity_id} moved from {before.position} to {after.position}, version {after.version}"

    with database_of(settings) as url:
        said = asyncio.run(_transaction(url, settings, work))
    logger.warning("rebased: %s in domain %s", said, domain)
    click.echo(said)


@click.command()
@settings_options(*DATABASE)
def verify(**given: str | None) -> None:
    """Compare the state counts with a full count, and print the differences.

    The status is 1 if they differ. Of a large table the progress is shown on standard error.
    """
    settings = logged_settings(given)
    with database_of(settings) as url:
        differing = asyncio.run(_verified(url))
    for each in differing:
        click.echo(f"domain {each.domain}, {each.state}: kept {each.kept:,}, counted {each.counted:,}")
    if differing:
        sys.exit(1)
    click.echo("the state counts equal a full count")


async def _verified(url: str) -> list[Miscount]:
    said_at = time.monotonic()

    def report(rows: int, share: float) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > SAY_EVERY:
            said_at = time.monotonic()
            click.echo(f"counted {rows:,} rows, {share:.0%} of the table", err=True)

    database = Database(url, pool_size=1, statement_timeout=PAGE_TIMEOUT, settings=LONG_TRANSACTIONS)
    try:
        return await database.write_alone(REGISTRATIONS.counts.verify_counts, report)
    finally:
        await database.close()


async def _transaction(url: str, settings: Settings, work: Callable[[Connection], Coroutine[None, None, T]]) -> T:
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=settings.statement_timeout))
    try:
        return await database.write(work)
    finally:
        await database.close()
