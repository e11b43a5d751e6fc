"""`pqs keys` and `pqs audit`: the keys and their rights, and the audit log. They need the database, but no key."""

import asyncio
import os
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import click
import msgspec
from msgspec.structs import replace

from app.access.keys import AccessKey, make
from app.access.principals import EVERY_DOMAIN, EVERY_KEY, Scope
from app.cli.operators import operator
from app.cli.options import DATABASE, logged_settings, settings_options
from app.cli.terminal import padded, plain, width
from app.errors import StartError
from app.runtime.database import database_of
from app.store import audit as audits
from app.store import keys as stored_keys
from app.store import quotas
from app.store.audit import Act
from app.store.database import Connection, Database
from app.store.keys import StoredKey

EXPIRES = "90d"
OVERLAP = "24h"
LONGEST = timedelta(days=3650)
EVERY = "*"  # every domain, or every workflow, on the command line

_NAME = re.compile(r"[A-Za-z0-9._@-]{1,128}")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

T = TypeVar("T")


def duration(value: str) -> timedelta:
    """Read a duration such as 30d, 12h, 45m or 10s, of ten years at most."""
    found = _DURATION.fullmatch(value)
    result = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else LONGEST * 2
    if result > LONGEST:
        raise click.BadParameter(f"{value!r} is not a duration such as 30d, 12h or 45m, of ten years at most")
    return result


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke keys.

    They need only the database. Every change is written to the audit log.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="A right of the key; may be repeated.",
)
@click.option(
    "--domain",
    "domains",
    multiple=True,
    help=f"A domain that the key covers; may be repeated. {EVERY} is every domain.",
)
@click.option(
    "--workflow-prefix",
    "prefixes",
    multiple=True,
    help=f"A prefix of workflow keys that the key covers; may be repeated. {EVERY} is every workflow.",
)
@click.option("--expires", type=duration, default=EXPIRES, show_default=True, help="The lifetime of the key.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Units a second, in each process of a service.")
@click.option("--burst", type=click.FloatRange(1), help="Units at once; without it, twice the rate.")
@settings_options(*DATABASE)
def create(
    name: str,
    scopes: Sequence[str],
    domains: Sequence[str],
    prefixes: Sequence[str],
    expires: timedelta,
    rate: float | None,
    burst: float | None,
    **given: str | None,
) -> None:
    """Create a key and print it once: only its digest is stored."""
    if _NAME.fullmatch(name) is None:
        raise click.UsageError("a name has 1 to 128 letters, digits, dots, underscores, hyphens or @")
    _check_reach(scopes, domains, prefixes)
    key = make(os.urandom)
    wanted = StoredKey(
        id=key.id,
        name=name,
        scopes=tuple(dict.fromkeys(scopes)),
        domains=tuple(dict.fromkeys(domains)),
        workflow_prefixes=tuple(dict.fromkeys(EVERY_KEY if each == EVERY else each for each in prefixes)),
        rate=rate,
        burst=burst,
        created_by=operator(),
        expires_at=datetime.now(UTC) + expires,
    )

    async def work(connection: Connection) -> None:
        await stored_keys.change(connection)
        if await stored_keys.get_named(connection, name):
            raise StartError(f"there is a live key {name}; `pqs keys rotate {name}` creates its successor")
        await stored_keys.add(connection, wanted, key.digest)
        await _write_down(connection, "keys.create", wanted)

    _in_transaction(given, work)
    _show(key, wanted)


@keys.command()
@click.argument("name")
@click.option(
    "--overlap", type=duration, default=OVERLAP, show_default=True, help="The remaining lifetime of the old key."
)
@click.option("--expires", type=duration, default=EXPIRES, show_default=True, help="The lifetime of the new key.")
@settings_options(*DATABASE)
def rotate(name: str, overlap: timedelta, expires: timedelta, **given: str | None) -> None:
    """Create and print a successor with the same rights. The old key ends after the overlap."""
    key = make(os.urandom)

    async def work(connection: Connection) -> StoredKey:
        await stored_keys.change(connection)
        live = await stored_keys.get_named(connection, name)
        if not live:
            raise StartError(f"there is no live key {name}; `pqs keys list` lists them")
        if len(live) > 1:
            raise StartError(f"{name} has two live keys: first revoke one of {', '.join(each.id for each in live)}")
        [old] = live
        now = datetime.now(UTC)
        new = replace(old, id=key.id, created_by=operator(), expires_at=now + expires)
        await stored_keys.add(connection, new, key.digest)
        await stored_keys.shorten(connection, [old.id], now + overlap)
        await _write_down(connection, "keys.rotate", old, f"by {key.id}")
        return new

    _show(key, _in_transaction(given, work))


@keys.command()
@click.argument("name")
@settings_options(*DATABASE)
def revoke(name: str, **given: str | None) -> None:
    """Revoke the live keys of a name, or the key with an id. Every host refuses them within five seconds."""

    async def work(connection: Connection) -> list[StoredKey]:
        await stored_keys.change(connection)
        live = await stored_keys.get_named(connection, name)
        if not live:
            raise StartError(f"there is no live key {name}; `pqs keys list` lists them")
        await stored_keys.revoke(connection, [each.id for each in live])
        for each in live:
            await _write_down(connection, "keys.revoke", each)
        return live

    for each in _in_transaction(given, work):
        click.echo(f"revoked {each.name}/{each.id}")


@keys.command("list")
@click.option("--all", "everything", is_flag=True, help="List expired and revoked keys, too.")
@click.option("-o", "--output", type=click.Choice(["table", "ndjson"]), default="table", help="The output format.")
@settings_options(*DATABASE)
def list_keys(everything: bool, output: str, **given: str | None) -> None:
    """List keys: names, rights and ends. Secrets are not stored, so they cannot be listed."""
    now = datetime.now(UTC)
    found = [
        each for each in _in_transaction(given, stored_keys.get_all) if everything or _state(each, now) == "live"
    ]
    if output == "ndjson":
        _echo_lines(found)
        return
    rows = [("id", "name", "state", "scopes", "domains", "prefixes", "expires", "last used", "made by")]
    rows += [
        (
            each.id,
            each.name,
            _state(each, now),
            ",".join(each.scopes),
            ",".join(each.domains) or "-",
            ",".join(prefix or EVERY for prefix in each.workflow_prefixes) or "-",
            f"{each.expires_at:%Y-%m-%d %H:%M}Z",
            str(each.last_used_on or "never"),
            each.created_by,
        )
        for each in found
    ]
    _echo_table(rows)


@keys.command()
@click.argument("prefix", required=False)
@click.argument("size", required=False)
@settings_options(*DATABASE)
def quota(prefix: str | None, size: str | None, **given: str | None) -> None:
    """List the quotas of workflow prefixes. With PREFIX and SIZE in bytes, set one; with SIZE `none`, remove it.

    The prefix * means all workflows. While this command sets a quota, no workflow can be written.
    """
    wanted = EVERY_KEY if prefix == EVERY else prefix
    if wanted is not None and (size is None or not (size == "none" or (size.isascii() and size.isdigit()))):
        raise click.UsageError("SIZE is a number of bytes, or none")

    async def work(connection: Connection) -> list[quotas.Quota]:
        if wanted is not None and size is not None:
            await stored_keys.change(connection)  # so that services notice it, as they notice a change of keys
            if size != "none":
                await quotas.set_quota(connection, wanted, int(size))
            elif not await quotas.remove_quota(connection, wanted):
                raise StartError(f"there is no quota for the prefix {prefix}")
            target = f"{prefix}: {size}"
            await audits.add(connection, Act(principal=operator(), action="quotas.set", target=target))
        return await quotas.get_all(connection)

    rows = [("prefix", "used", "quota")]
    rows += [
        (each.prefix or EVERY, str(each.used_bytes), str(each.max_bytes)) for each in _in_transaction(given, work)
    ]
    _echo_table(rows)


@click.command()
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="The number of entries.")
@click.option(
    "--before", type=click.IntRange(1), default=audits.NEWEST, help="Entries with a lower id than this one."
)
@click.option("-o", "--output", type=click.Choice(["table", "ndjson"]), default="table", help="The output format.")
@settings_options(*DATABASE)
def audit(limit: int, before: int, output: str, **given: str | None) -> None:
    """Print the audit log, newest entries first."""

    async def work(connection: Connection) -> list[audits.LoggedAct]:
        return await audits.get_page(connection, before=before, limit=limit)

    found = _in_transaction(given, work)
    if output == "ndjson":
        _echo_lines(found)
        return
    rows = [("id", "at", "principal", "action", "target", "outcome", "correlation id", "peer")]
    rows += [
        (
            str(each.id),
            f"{each.at:%Y-%m-%dT%H:%M:%S}Z",
            each.principal,
            each.action,
            each.target,
            each.outcome,
            each.correlation_id or "-",
            each.peer or "-",
        )
        for each in found
    ]
    _echo_table(rows)


def _check_reach(scopes: Sequence[str], domains: Sequence[str], prefixes: Sequence[str]) -> None:
    """Check that the key covers something: one without a domain or prefix is a mistake. Raises UsageError."""
    kinds = {scope.partition(":")[0] for scope in scopes}
    if kinds & {"events", "entities"} and not domains:
        raise click.UsageError("events and entities need a --domain, or --domain '*'")
    if "operations" in kinds and EVERY_DOMAIN not in domains:
        raise click.UsageError("operations concern every domain: they need --domain '*'")
    if "workflows" in kinds and not prefixes:
        raise click.UsageError("workflows need a --workflow-prefix, or --workflow-prefix '*'")
    if not all(0 < len(each) <= 128 and each.isprintable() for each in domains):
        raise click.UsageError("a domain has 1 to 128 printable characters")
    if not all(0 < len(each) <= 255 and each.isprintable() for each in prefixes):
        raise click.UsageError("a workflow prefix has 1 to 255 printable characters")


def _state(key: StoredKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "live" if key.expires_at > now else "expired"


def _show(key: AccessKey, stored: StoredKey) -> None:
    """Write only the key to standard output, for a pipe into a secret store, and its facts to standard error."""
    click.echo(key.text)
    click.echo(
        f"{stored.name}/{key.id} lives until {stored.expires_at:%Y-%m-%d %H:%M}Z; it is shown only once", err=True
    )


async def _write_down(connection: Connection, action: str, key: StoredKey, more: str = "") -> None:
    target = f"{key.name}/{key.id} {more}".rstrip()
    await audits.add(connection, Act(principal=operator(), action=action, target=target))


def _in_transaction(given: dict[str, str | None], work: Callable[[Connection], Coroutine[None, None, T]]) -> T:
    settings = logged_settings(given)

    async def run(url: str) -> T:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=settings.statement_timeout))
        try:
            return await database.write(work)
        finally:
            await database.close()

    with database_of(settings) as url:
        return asyncio.run(run(url))


def _echo_lines(found: Sequence[msgspec.Struct]) -> None:
    for each in found:
        click.echo(msgspec.json.encode(each))


def _echo_table(rows: Sequence[Sequence[str]]) -> None:
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(map(padded, row, widths)).rstrip())
