"""A snapshot that is followed without a gap: rows by key, and the changes since of the entities that were given.

Nothing is held between its pages. Each page reads rows, then the highest id drawn, and waits until that is settled.
The changes behind a row have ids up to that one. So up to there, an entity's changes are either in its row (versions
up to the row's) or follow the row on the same page, and later changes have later ids. Every entity comes in the order
of its versions, its row included.
"""

from collections.abc import Sequence
from uuid import UUID

from msgspec import Struct

from app.domain.events import key_of
from app.domain.registration import Registration
from app.domain.states import RegistrationState
from app.errors import BadTokenError
from app.feed import tokens
from app.feed.feed import Feed
from app.feed.items import Filter, Item, matches
from app.feed.tokens import Token
from app.store import changes
from app.store.database import Connection, Database
from app.store.listing import EntityFilter, get_by_state
from app.store.registrations import REGISTRATIONS

SETTLE_WITHIN = 5.0  # seconds that a page waits for what is not settled


class SnapshotPage(Struct, frozen=True):
    """Changes of entities whose rows were given before, rows, the changes after these, and where to go on."""

    changes: Sequence[Item]
    rows: Sequence[Registration]
    later: Sequence[Item]
    begin: Token  # after the first changes: where to go on when not all of the rest has arrived
    next: Token


class Snapshot:
    """Gives snapshots, page by page. `database` is the primary: the feed's own."""

    def __init__(self, feed: Feed, database: Database) -> None:
        self._feed = feed
        self._database = database

    async def begin(self, wanted: Filter) -> Token:
        """Where a snapshot begins."""
        return Token(await self._feed.newest(), None, tokens.digest_of(_bound(wanted)))

    async def page(self, token: Token, wanted: Filter, *, limit: int) -> SnapshotPage:
        """The page at a token of a snapshot, of at most `limit` rows and changes.

        The last page's token is of the log alone. Raises BadTokenError for another filter than the snapshot's, and
        ChangesGoneError as `Feed.page` does.
        """
        key = token.key
        if token.digest != tokens.digest_of(_bound(wanted)):
            raise BadTokenError("the token belongs to a snapshot with other filters: use it with the same")
        caught_up = await self._feed.page(token.place, wanted, limit=limit, wait=0)
        since = [item for item in caught_up.items if _given(item, key)]
        place = caught_up.place
        stay = Token(place, key, token.digest)
        if not caught_up.caught_up or len(since) == limit:
            return SnapshotPage(since, [], [], stay, stay)
        rows, is_last, drawn = await self._database.read(_rows, wanted, key, limit - len(since))
        ring = await self._feed.settled(drawn, within=SETTLE_WITHIN)
        if ring is None or not ring.has(place):
            return SnapshotPage(since, [], [], stay, stay)
        begin = Token(ring.newest, key, token.digest)
        after = [item for item in ring.after(place) if matches(item, wanted)]
        since += [item for item in after if _given(item, key)]
        if len(since) >= limit:
            since = since[:limit]
            stay = Token(since[-1].place, key, token.digest)
            return SnapshotPage(since, [], [], stay, stay)
        while rows or is_last:
            versions = {row.entity_id.bytes: row.version for row in rows}
            last = None if is_last else rows[-1].entity_id
            later = [
                item
                for item in after
                if not _given(item, key)
                and (is_last or _given(item, last))
                and item.version > versions.get(item.entity_id.bytes if item.entity_id else b"", 0)
            ]
            if len(since) + len(rows) + len(later) <= limit:
                token = Token(ring.newest) if last is None else Token(ring.newest, last, token.digest)
                return SnapshotPage(since, rows, later, begin, token)
            rows, is_last = rows[: len(rows) // 2], False
        return SnapshotPage(since, [], [], begin, begin)


def _given(item: Item, key: UUID | None) -> bool:
    """Whether the item's entity comes no later than this key: its row was given."""
    return key is not None and item.entity_id is not None and item.entity_id <= key


def _bound(wanted: Filter) -> list[object]:
    """The filter, in one order."""
    sets = (wanted.entity_ids, wanted.states, wanted.types)
    return [wanted.domain, wanted.node_type, *(sorted(map(str, some)) for some in sets)]


async def _rows(
    connection: Connection, wanted: Filter, after: UUID | None, limit: int
) -> tuple[list[Registration], bool, int]:
    """Rows in the order of their keys, whether they are the last, and the highest id drawn after they were read."""
    states = tuple(map(RegistrationState, sorted(wanted.states)))
    if wanted.entity_ids:
        keys = [(each, wanted.domain) for each in sorted(wanted.entity_ids) if after is None or each > after]
        found = await REGISTRATIONS.get_entity_states(connection, keys)
        rows = [row for each in keys if (row := found.get(key_of(*each))) is not None and _is_wanted(row, wanted)]
    else:
        entities = EntityFilter(domain=wanted.domain, states=states, node_type=wanted.node_type)
        rows, more = await get_by_state(connection, entities, after=after, limit=limit)
        return rows, not more, await changes.drawn(connection)
    return rows[:limit], len(rows) <= limit, await changes.drawn(connection)


def _is_wanted(row: Registration, wanted: Filter) -> bool:
    return (
        row.forgotten_at is None
        and wanted.node_type in {None, row.node_type}
        and (not wanted.states or row.current_state in wanted.states)
    )
