"""What the driver's errors mean: one of this project's errors, with a cause that names no address, role or password.

The driver's own messages go to the log.
"""

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from socket import gaierror

import asyncpg

from app.errors import (
    DatabaseDownError,
    DatabaseRefusesError,
    LimitedConnectionsError,
    PqsError,
    ReadOnlyError,
    RefusedValuesError,
    RowLockedError,
    SchemaMismatchError,
    SequenceBehindError,
    UnavailableError,
)

log = logging.getLogger(__name__)

# asyncpg's errors for a connection that the server has closed. It raises the last one if it has not yet noticed that
# the server announced the end: https://github.com/MagicStack/asyncpg/issues/784
NOT_OPEN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
BROKEN = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

# Errors about values: a wrong type or range, a violated constraint, the refusal of a trigger, or too large a value.
REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.PLPGSQLError,
    asyncpg.ProgramLimitExceededError,
)

# What failures are called in metrics; the first line that fits counts.
_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (BROKEN, "connection"),
    ((asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError), "cancelled"),
    (asyncpg.TransactionRollbackError, "lost_race"),
    (REFUSED, "refused"),
    (asyncpg.PostgresError, "other"),
)

# What a prepared statement or cursor that is not there, or is there already, says: another session answers.
STRAY_SESSION = (
    asyncpg.InvalidSQLStatementNameError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidCursorNameError,
)
POOLED_BY_TRANSACTION = (
    "a pooler in front of the database gives each transaction another session; the service needs a pooler in session "
    "mode (PgBouncer: pool_mode = session), or none"
)
NO_ROOM = "53"  # the class of errors for a full disk, no memory, and too many connections
_NO_ROOM = {
    "53100": "the database's disk is full; nothing was written",
    "53200": "the database is out of memory",
    "53300": "the database takes no more connections",
}
_DOWN = {
    "57P01",
    "57P02",
    "57P03",
    "57P04",
    "57P05",
    "3D000",
}  # shutting down, crashed, starting up, dropped, timed out
_ENDED = {"25P03", "25P04"}  # the time-outs of an idle transaction, and of a transaction: the session has ended

# Causes for which a connection is refused until somebody changes something.
_REFUSES = {
    "28P01": "the database refuses the password of its role",
    "28000": "the database refuses the role: it does not exist, may not log in, or pg_hba.conf has no entry for it",
    "3D000": "there is no database of the configured name on the server",
    "42501": "the role may not connect to the database",
    "42704": "the server does not know a parameter that the address of the database names",
    "22023": "the server refuses a parameter that the address of the database names",
}
# Causes that pass by themselves.
_PASSES = {
    "55000": "the database accepts no connections now",
    "57P03": "the database is starting up, shutting down or in recovery",
    "53300": _NO_ROOM["53300"],
}


class LostRaceError(PqsError):
    """Another writer was faster, or PostgreSQL ended a deadlock or serialization failure. Nothing was written."""

    def __init__(self, message: str = "", *, reason: str = "guard") -> None:
        """`reason` is what the metrics call it: guard, rollback or plan."""
        super().__init__(message)
        self.reason = reason


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into this project's. Their messages go to the log, not to the caller."""
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _named(error) from error
    except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # The connection cannot be opened, breaks, or stays silent.
        raise down(error) from error


@contextmanager
def refused_values() -> Iterator[None]:
    """Raise RefusedValuesError if PostgreSQL or its driver refuses a value. Its message goes to the log.

    A key of ours that exists already is not the caller's: it raises UnavailableError, which names the cause.
    """
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if not _is_drawn(error):
            raise _refused(error) from None
        log.error("a sequence is behind its table: %s", error)  # noqa: TRY400 - a traceback would not help
        raise SequenceBehindError(
            f"the sequence of {error.table_name} is behind its table, as after logical replication; run `pqs migrate`"
        ) from None
    except REFUSED as error:
        raise _refused(error) from None


def _is_drawn(error: asyncpg.UniqueViolationError) -> bool:
    """Whether the key that exists already came from a sequence of ours."""
    table = error.table_name or ""
    ours = ("outbox", "changes", "audit_log", "held_messages")
    return table.startswith(ours) or error.constraint_name == "dead_letters_pkey"


def _refused(error: Exception) -> RefusedValuesError:
    log.warning("PostgreSQL refused a write: %s", error)
    return RefusedValuesError("the table does not accept these values; the log says why")


def not_connected(error: BaseException) -> UnavailableError:
    """What it means that no connection could be opened."""
    state = getattr(error, "sqlstate", None) or ""
    if state[:2] == NO_ROOM:
        log.info("no further connection: %s", error)
        return LimitedConnectionsError(_NO_ROOM.get(state, "the database has no room for a connection"))
    if (refusal := _refusal(error, state)) is not None:
        log.warning("no connection: %s: %s: %s", refusal, type(error).__name__, error)
        return DatabaseRefusesError(refusal)
    if state in _PASSES:
        log.warning("no connection: %s: %s", type(error).__name__, error)
        return DatabaseDownError(_PASSES[state])
    if isinstance(error, gaierror):
        log.warning("no connection: %s", error)
        return DatabaseDownError("the host name of the database is not known")
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        log.warning("no connection: %s", error)
        return DatabaseDownError("none of the database's hosts has the role that the address asks for")
    return down(error)


def _refusal(error: BaseException, state: str) -> str | None:
    """The cause, where it does not pass by itself."""
    if isinstance(error, STRAY_SESSION):
        return POOLED_BY_TRANSACTION
    if state in _REFUSES:
        return _REFUSES[state]
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the certificate of the database is not accepted"
    if isinstance(error, ssl.SSLError):
        return "TLS with the database fails"
    if isinstance(error, ConnectionError) and "SSL" in str(error):
        return "the database does not speak TLS, and its address asks for it"
    if isinstance(error, asyncpg.ClientConfigurationError | ValueError):
        return "the address of the database cannot be used"
    return None


def down(error: BaseException) -> DatabaseDownError:
    """The error for a database that does not answer."""
    log.warning("the database does not answer: %s: %s", type(error).__name__, error)
    return DatabaseDownError("the database does not answer")


def _named(error: asyncpg.PostgresError) -> Exception:
    state = error.sqlstate or ""
    if state[:2] == NO_ROOM:
        log.warning("the database has no room: %s", error)
        return UnavailableError(_NO_ROOM.get(state, "the database has reached a limit"))
    if isinstance(error, asyncpg.PostgresConnectionError) or state[:2] in {"08", "28"} or state in _DOWN:
        return down(error)
    if isinstance(error, STRAY_SESSION):
        log.error("%s: %s", POOLED_BY_TRANSACTION, error)
        return DatabaseRefusesError(POOLED_BY_TRANSACTION)
    if state in {"40001", "40P01"}:
        return LostRaceError("PostgreSQL rolled the transaction back because of a concurrent one", reason="rollback")
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return LostRaceError("a migration changed a table of a prepared statement", reason="plan")
    if state == "55P03":
        return RowLockedError("another client keeps a row locked for long; nothing was written")
    if state == "57014":
        return UnavailableError("a statement took too long, and the database cancelled it")
    if state in _ENDED:
        log.warning("the database ended a session: %s", error)
        return UnavailableError("the database ended a transaction that took too long")
    if state in {"42P01", "42703", "42704"}:
        return SchemaMismatchError("the database's schema is not the one that this code expects; see /readyz")
    if state == "42501":
        log.error("the database role lacks a right: %s", error)
        return UnavailableError("the database role lacks a right; see /readyz")
    if state == "25006":
        return ReadOnlyError("the database is read-only now")
    if state[:2] == "58":  # the operating system's
        log.error("the database reports a failure of its system: %s", error)
        return UnavailableError("the database cannot read or write its files")
    return error


def kind_of(error: BaseException) -> str | None:
    """The kind of a failure, a word of a closed set; None for what does not concern the database."""
    for types, kind in _KINDS:
        if isinstance(error, types):
            return kind
    return None
