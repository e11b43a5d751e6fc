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

from app.cli.operators import operator
from app.cli.options import CHANGES, DATABASE, logged_settings, settings_options
from app.domain.events import DEFAULT_DOMAIN
from app.domain.positions import (
    ANY_PARTITION,
    BEFORE_FIRST,
    MAX_NUMBER,
    MAX_PARTITION,
    Position,
    before_topic,
    topic_of,
)
from app.errors import StartError
from app.projection.changes import change_log_of
from app.projection.tracks import move_track
from app.runtime.database import database_of
from app.settings import Settings
from app.settings.types import TOPIC_NAME
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
@click.argument("entity_id", type=click.UUID, required=False)
@click.option("--domain", default=DEFAULT_DOMAIN, show_default=True, help="The entity's domain.")
@click.option("--sequence", type=click.IntRange(0, MAX_NUMBER), help="The new position: this sequence.")
@click.option("--partition", help="The new position: an offset of this partition.")
@click.option(
    "--offset",
    type=click.IntRange(BEFORE_FIRST, MAX_NUMBER),
    help="The offset in that partition; -1 stands before its first message.",
)
@click.option("--from", "track", help="Move every row of this TOPIC, or of this partition TOPIC-NUMBER.")
@click.option("--to", "topic", help="The topic before whose first message those rows stand then.")
@settings_options(*DATABASE, *CHANGES)
def rebase(
    entity_id: UUID | None,
    domain: str,
    sequence: int | None,
    partition: str | None,
    offset: int | None,
    track: str | None,
    topic: str | None,
    **given: str | None,
) -> None:
    """Move an entity, or all entities of a track, to another track: only their positions and versions change.

    One entity: ENTITY_ID with --sequence, or with --partition and --offset. All entities of a topic, after it was
    renamed, moved to another cluster or given more partitions: --from TOPIC --to TOPIC. They take the next message of
    the new topic, whatever its partition and offset. Where a topic's own name ends in a hyphen and digits, write
    TOPIC-* for all of its partitions.
    """
    if not (domain + (partition or "") + (track or "") + (topic or "")).isprintable():
        # bytes that are not UTF-8 arrive as lone surrogates
        raise click.UsageError("--domain, --partition, --from and --to take printable characters in UTF-8")
    of_one = {"--sequence": sequence, "--partition": partition, "--offset": offset}
    if track is not None or topic is not None:
        if track is None or topic is None:
            raise click.UsageError("--from and --to belong together")
        if entity_id is not None or any(value is not None for value in of_one.values()):
            raise click.UsageError("--from and --to move all rows of a track: give neither an entity nor a position")
        _rebase_track(_track(track), before_topic(_topic(topic)), logged_settings(given))
        return
    if entity_id is None:
        raise click.UsageError("give an entity id, or --from and --to")
    _rebase_entity(entity_id, domain, _position(sequence, partition, offset), logged_settings(given))


def _position(sequence: int | None, partition: str | None, offset: int | None) -> Position:
    if partition is not None and not 1 <= len(partition) <= MAX_PARTITION:
        raise click.UsageError(f"--partition has 1 to {MAX_PARTITION} characters")
    try:
        return Position(sequence=sequence, partition=partition, offset=offset)
    except ValueError as error:
        raise click.UsageError(str(error).replace("`", "")) from None


def _topic(name: str) -> str:
    if not TOPIC_NAME.fullmatch(name):
        raise click.UsageError(f"{name} is not a topic's name: letters, digits, `.`, `_` and `-`, at most 249")
    return name


def _track(name: str) -> str:
    """A partition as it is, and a topic as all of its partitions."""
    if topic_of(name) is not None:
        return name
    return f"{_topic(name)}-{ANY_PARTITION}"


def _rebase_entity(entity_id: UUID, domain: str, position: Position, settings: Settings) -> None:
    async def work(connection: Connection) -> str:
        found = await REGISTRATIONS.rebase(connection, entity_id, domain, position)
        if found is None:
            raise StartError(f"there is no entity {entity_id} in domain {domain}")
        before, after = found
        log = change_log_of(settings)
        await changes.add(connection, log.rebased(before, after, await now(connection)), log.slice_seconds)
        target = f"{domain}/{entity_id}: from {before.position} to {after.position}"
        await audit.add(connection, Act(principal=operator(), action="rebase", target=target))
        return f"{entity_id} moved from {before.position} to {after.position}, version {after.version}"

    with database_of(settings) as url:
        said = asyncio.run(_transaction(url, settings, work))
    logger.warning("rebased: %s in domain %s", said, domain)
    click.echo(said)


def _rebase_track(track: str, to: Position, settings: Settings) -> None:
    """Move all rows of a track, some thousand in a transaction. When it is interrupted, it can be done again."""
    with database_of(settings) as url:
        number = asyncio.run(_move_track(url, settings, track, to))
    said = f"{number:,} entities moved from {track} to {to}"
    logger.warning("rebased: %s", said)
    click.echo(said)


async def _move_track(url: str, settings: Settings, track: str, to: Position) -> int:
    database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=settings.statement_timeout))
    try:
        number = await move_track(database, change_log_of(settings), track, to)
        act = Act(principal=operator(), action="rebase", target=f"{number} entities from {track} to {to}")
        await database.write(audit.add, act)
    finally:
        await database.close()
    return number


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
