"""Every statement over `api_keys` and `api_key_revision`: who is let in."""

from collections.abc import Collection
from datetime import date, datetime
from typing import cast

from msgspec import Struct
from sqlalchemy import text

from app.domain.events import Time
from app.store.database import Connection, Record
from app.store.statements import Statement

CHANNEL = "pqs_keys"  # of NOTIFY: the keys have changed


class StoredKey(Struct, frozen=True, kw_only=True):
    """A key as the table has it, but for the digest of its secret."""

    id: str
    name: str
    scopes: tuple[str, ...]
    domains: tuple[str, ...]
    workflow_prefixes: tuple[str, ...]
    rate: float | None = None
    burst: float | None = None
    created_at: Time | None = None
    created_by: str
    expires_at: Time
    revoked_at: Time | None = None
    last_used_on: date | None = None


class Keys(Struct, frozen=True):
    """The live keys by the digests of their secrets, as one snapshot, and the revision that it belongs to."""

    revision: int
    by_digest: dict[bytes, StoredKey]


def _stored(row: Record) -> StoredKey:
    """The columns in the order of the statements below."""
    id_, name, scopes, domains, prefixes, *rest = row
    rate, burst, created_at, created_by, expires_at, revoked_at, last_used_on, *_ = rest
    return StoredKey(
        id=id_,
        name=name,
        scopes=tuple(scopes),
        domains=tuple(domains),
        workflow_prefixes=tuple(prefixes),
        rate=rate,
        burst=burst,
        created_at=created_at,
        created_by=created_by,
        expires_at=expires_at,
        revoked_at=revoked_at,
        last_used_on=last_used_on,
    )


_COLUMNS = (
    "id, name, scopes, domains, workflow_prefixes, rate, burst, created_at, created_by, expires_at, revoked_at,"
    " last_used_on"
)

# Counts one more change, and wakes the services that listen. Whoever changes keys does this first: the row's lock
# lets one at a time go on, so nobody decides by keys that another one is changing.
CHANGE = Statement(
    text("""
WITH counted AS (
    INSERT INTO api_key_revision (single, revision) VALUES (true, 1)
    ON CONFLICT (single) DO UPDATE SET revision = api_key_revision.revision + 1
    RETURNING revision
)
SELECT pg_notify(CAST(:channel AS text), CAST(revision AS text)) FROM counted
""")
)


async def change(connection: Connection) -> None:
    """Begin a change of keys. Needs a transaction; it is told to the services at its commit."""
    await CHANGE.rows(connection, channel=CHANNEL)


# The number of changes so far.
REVISION = Statement(text("SELECT coalesce(max(revision), 0) FROM api_key_revision"))


async def get_revision(connection: Connection) -> int:
    """The revision of the keys: 0 before the first change."""
    return cast("int", await REVISION.value(connection))


# The keys that let somebody in, and the revision: one statement, so one snapshot.
LIVE = Statement(
    text(f"""
SELECT {_COLUMNS}, digest, revision
FROM (SELECT coalesce(max(revision), 0) AS revision FROM api_key_revision) AS counted
LEFT JOIN api_keys ON revoked_at IS NULL AND expires_at > now()
""")  # noqa: S608 - the names above
)


async def get_live(connection: Connection) -> Keys:
    """The keys that are neither revoked nor expired."""
    rows = await LIVE.rows(connection)
    return Keys(rows[0]["revision"], {row["digest"]: _stored(row) for row in rows if row["id"] is not None})


# All keys, the live ones and those of the past.
LIST = Statement(text(f"SELECT {_COLUMNS} FROM api_keys ORDER BY name, created_at, id"))  # noqa: S608 - the names above


async def get_all(connection: Connection) -> list[StoredKey]:
    """Every key that ever was, by name and age."""
    return [_stored(row) for row in await LIST.rows(connection)]


# The live keys that a name or an id means, oldest first.
NAMED = Statement(
    text(f"""
SELECT {_COLUMNS} FROM api_keys
WHERE (name = CAST(:name AS varchar) OR id = CAST(:name AS varchar)) AND revoked_at IS NULL AND expires_at > now()
ORDER BY created_at, id
""")  # noqa: S608 - the names above
)


async def get_named(connection: Connection, name: str) -> list[StoredKey]:
    """The live keys of this name, or with this id."""
    return [_stored(row) for row in await NAMED.rows(connection, name=name)]


# A new key.
ADD = Statement(
    text("""
INSERT INTO api_keys
    (id, name, digest, scopes, domains, workflow_prefixes, rate, burst, created_by, expires_at)
VALUES (
    CAST(:id AS varchar), CAST(:name AS varchar), CAST(:digest AS bytea), CAST(:scopes AS text[]),
    CAST(:domains AS text[]), CAST(:prefixes AS text[]), CAST(:rate AS float), CAST(:burst AS float),
    CAST(:created_by AS varchar), CAST(:expires_at AS timestamptz)
)
""")
)


async def add(connection: Connection, key: StoredKey, digest: bytes) -> None:
    """Keep a new key, after `change`."""
    await ADD.rows(
        connection,
        id=key.id,
        name=key.name,
        digest=digest,
        scopes=list(key.scopes),
        domains=list(key.domains),
        prefixes=list(key.workflow_prefixes),
        rate=key.rate,
        burst=key.burst,
        created_by=key.created_by,
        expires_at=key.expires_at,
    )


# The end of some keys, now.
REVOKE = Statement(text("UPDATE api_keys SET revoked_at = now() WHERE id = ANY(CAST(:ids AS varchar[]))"))


async def revoke(connection: Connection, ids: Collection[str]) -> None:
    """End these keys, after `change`."""
    await REVOKE.rows(connection, ids=list(ids))


# Gives some keys an earlier end. A key that ends before that stays as it is.
SHORTEN = Statement(
    text("""
UPDATE api_keys SET expires_at = least(expires_at, CAST(:expires_at AS timestamptz))
WHERE id = ANY(CAST(:ids AS varchar[]))
""")
)


async def shorten(connection: Connection, ids: Collection[str], expires_at: datetime) -> None:
    """Let these keys end at `expires_at` at the latest, after `change`."""
    await SHORTEN.rows(connection, ids=list(ids), expires_at=expires_at)


# The day on which keys were last used: one write a key and day, however many services see it used.
USED = Statement(
    text("""
UPDATE api_keys SET last_used_on = current_date
WHERE id = ANY(CAST(:ids AS varchar[])) AND last_used_on IS DISTINCT FROM current_date
""")
)


async def note_use(connection: Connection, ids: Collection[str]) -> None:
    """Note that these keys were used today, by the database's calendar in UTC. This is not a change of keys."""
    await USED.rows(connection, ids=sorted(ids))
