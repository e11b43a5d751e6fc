"""The driver's errors by what they mean: broken connections, refused values, and their names in metrics."""

import asyncpg

# asyncpg's errors for a connection that the server has closed. It raises the last one if it has not yet noticed that
# the server announced the end: https://github.com/MagicStack/asyncpg/issues/784
NOT_OPEN = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
BROKEN = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)

# Errors about values: a wrong type or range, a violated constraint, the refusal of a trigger, or too large a value.
REFUSALS = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.PLPGSQLError,
    asyncpg.ProgramLimitExceededError,
)

# What failures are called in metrics; the first line that fits counts.
KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (BROKEN, "connection"),
    ((asyncpg.QueryCanceledError, asyncpg.LockNotAvailableError), "cancelled"),
    (asyncpg.TransactionRollbackError, "lost_race"),
    (REFUSALS, "refused"),
    (asyncpg.PostgresError, "other"),
)


def kind_of(error: BaseException) -> str | None:
    """The kind of a failure, a word of a closed set; None for what does not concern the database."""
    for types, kind in KINDS:
        if isinstance(error, types):
            return kind
    return None
