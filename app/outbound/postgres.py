"""The `postgres.*` intents: each writes one row, in the caller's transaction.

The projector writes the same changes in batches. Both use `save` and its version guard. These functions lock the row
first, so the version and heartbeat that they compare are the ones that the write replaces.
"""

from datetime import datetime

import msgspec
from msgspec import UNSET
from msgspec.structs import asdict, replace

from app.domain.folding import Save
from app.domain.intents import Columns, UpdateRegistration, UpsertRegistration
from app.domain.registration import Registration
from app.errors import IntentError
from app.store.database import Connection
from app.store.failures import refused_values
from app.store.registrations import REGISTRATIONS

INTENTS = ("postgres.upsert_registration", "postgres.update_registration")


async def upsert_registration(connection: Connection, intent: object) -> bool:
    """Write the whole row, if the stored one still has the version that was read (None: if there is no row).

    Returns whether the row was written. Raises IntentError, before any SQL, for another payload or another entity's
    row. Raises RefusedValuesError if a constraint refuses the row, and LostRaceError if another writer has inserted
    it meanwhile; the transaction is lost then.
    """
    if not isinstance(intent, UpsertRegistration):
        raise IntentError(f"postgres.upsert_registration takes an UpsertRegistration, not {type(intent).__name__}")
    key = (intent.entity_id, intent.domain)
    given = asdict(intent.registration)
    if (given.pop("entity_id"), given.pop("domain")) != key:
        raise IntentError("postgres.upsert_registration: the row belongs to another entity")
    after = Registration(*key, **_columns(given))  # type: ignore[arg-type]  # Columns has the types of its fields
    before = await REGISTRATIONS.get_entity_state(connection, *key, lock=True)
    if (None if before is None else before.version) != intent.read_version:
        return False
    with refused_values():
        await REGISTRATIONS.upsert.save(connection, [Save(after, before)])
    return True


async def update_registration(connection: Connection, intent: object) -> bool:
    """Write the columns that the intent names, if the row still has the version that was read.

    When `last_heartbeat_at` is among them, it must also be newer than the row's. The version rises by one, unless the
    intent names a higher one. Returns whether the row was written. Times, ids and states may be strings, as in JSON.

    Raises IntentError, before any SQL, for another payload, for an empty update, and for names and values that the
    table cannot have. Raises RefusedValuesError when a constraint refuses the values; the transaction is lost then.
    """
    if not isinstance(intent, UpdateRegistration):
        raise IntentError(f"postgres.update_registration takes an UpdateRegistration, not {type(intent).__name__}")
    changes = _columns(dict(intent.changes))
    if not changes:
        raise IntentError("postgres.update_registration: there is nothing to update")
    version = changes.setdefault("version", intent.read_version + 1)
    if not isinstance(version, int) or version <= intent.read_version:
        raise IntentError(f"postgres.update_registration: version {version} is not above {intent.read_version}")
    before = await REGISTRATIONS.get_entity_state(connection, intent.entity_id, intent.domain, lock=True)
    if before is None or before.version != intent.read_version:
        return False
    after = replace(before, **changes)
    if "last_heartbeat_at" in changes and not _is_newer(after.last_heartbeat_at, before.last_heartbeat_at):
        return False
    with refused_values():
        await REGISTRATIONS.upsert.save(connection, [Save(after, before)])
    return True


def _is_newer(heartbeat_at: datetime | None, newest: datetime | None) -> bool:
    return newest is None or (heartbeat_at is not None and heartbeat_at > newest)


def _columns(changes: object) -> dict[str, object]:
    """The named columns and their values, in the types of the table."""
    try:
        columns = msgspec.convert(changes, Columns)
    except msgspec.ValidationError as error:
        raise IntentError(f"the values to write are invalid: {error}") from None
    return {name: value for name, value in asdict(columns).items() if value is not UNSET}
