"""The tree of errors. Those here know no HTTP: `api/problems.py` gives each type a status.

FramingError (`runtime/framing.py`) and AuthError (`access/refusals.py`) bring their status along.
"""

from datetime import datetime, timedelta
from uuid import UUID

from msgspec import Struct


class Fault(Struct, frozen=True):
    """One fault of an input.

    `pointer` is a JSON pointer as a URI fragment (RFC 6901, section 6), such as `#/1/position`; outside the body it
    starts with `#/query`, `#/path` or `#/header`. `detail` says what is wrong.
    """

    pointer: str
    detail: str


class PqsError(Exception):
    """The root of this project's errors. The message is for people, and holds no secrets."""


class UnreadableError(PqsError):
    """The input is not JSON; the message says where it breaks."""


class FramedMessageError(UnreadableError):
    """The serializer of a schema registry has framed the message of a log: it is not plain JSON."""


class BadCursorError(PqsError):
    """The cursor is damaged, or belongs to another query."""


class InvalidInputError(PqsError):
    """The input is JSON, but wrong: `faults` says what is wrong, and where."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults))
        self.faults = faults


class ForeignMessageError(PqsError):
    """The message of a log is not an event. `kind` is `tombstone` (it has no value) or `type` (which is not ours)."""

    def __init__(self, message: str, kind: str = "type") -> None:
        super().__init__(message)
        self.kind = kind


class TooLargeError(PqsError):
    """The body is larger than this service accepts in one piece."""


class UnsupportedMediaError(PqsError):
    """The call does not accept the content type of the body."""


class UnsupportedCodingError(UnsupportedMediaError):
    """This service does not decode the content coding of the body."""


class MisdirectedError(PqsError):
    """The service does not answer for the host of the request."""


class ForeignOriginError(PqsError):
    """A page of an unlisted origin tries to change something."""


class NotFoundError(PqsError):
    """There is no such row."""


class ForgottenError(PqsError):
    """The entity was forgotten at `forgotten_at`: it has only a tombstone."""

    def __init__(self, entity_id: UUID, domain: str, forgotten_at: datetime, *, permanent: bool) -> None:
        super().__init__(f"the entity {entity_id} in domain {domain} was forgotten{' for good' if permanent else ''}")
        self.entity_id = entity_id
        self.domain = domain
        self.forgotten_at = forgotten_at
        self.permanent = permanent


class InUseError(PqsError):
    """What is to be removed is in use."""


class PreconditionRequiredError(PqsError):
    """A commit does not say which version it builds on."""


class PreconditionFailedError(PqsError):
    """The row is not at a version that the request names; `etag` is its present one, empty without a row."""

    def __init__(self, message: str, etag: str) -> None:
        super().__init__(message)
        self.etag = etag


class ActionConflictError(PqsError):
    """The action was already applied with another state, as version `version` of its workflow."""

    def __init__(self, action_id: str, version: int) -> None:
        super().__init__(
            f"action {action_id} was already applied, as version {version}, with another state or schema_version: "
            "use a new action_id for another state"
        )
        self.action_id = action_id
        self.version = version


class UnavailableError(PqsError):
    """The database cannot be used now. The request may be sent again after `retry_after`."""

    def __init__(self, message: str, *, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseDownError(UnavailableError):
    """The database does not answer: its circuit breaker counts this error."""


class DatabaseRefusesError(DatabaseDownError):
    """The database takes no connection until somebody changes something; the message names the cause."""


class PoolExhaustedError(UnavailableError):
    """All connections of this process are in use: nothing was sent to the database."""


class LimitedConnectionsError(PoolExhaustedError):
    """The server takes no further connection: nothing was sent to the database."""


class ReadOnlyError(UnavailableError):
    """The database takes no writes now: it is a standby, or was made read-only."""


class RowLockedError(UnavailableError):
    """Another client kept a row locked for longer than this write could wait. Nothing was written."""


class ContentionError(UnavailableError):
    """Other writers were faster in every attempt. Nothing was written."""


class SchemaMismatchError(UnavailableError):
    """The database's schema is not the one that this code expects."""


class UnusableDatabaseError(UnavailableError):
    """The database can never serve as it is; the message says why."""


class SequenceBehindError(UnavailableError):
    """A sequence would draw keys that its table has already; `pqs migrate` mends this."""


class IngestInterruptedError(UnavailableError):
    """The database failed in the middle of a stream: the first `committed_lines` lines are committed."""

    def __init__(self, cause: UnavailableError, committed_lines: int) -> None:
        super().__init__(str(cause), retry_after=cause.retry_after)
        self.committed_lines = committed_lines


class TooManyFaultsError(PqsError):
    """A stream was broken off, because its answer would be too long: the first `committed_lines` lines are committed,
    without those that are faults."""

    def __init__(self, message: str, committed_lines: int) -> None:
        super().__init__(message)
        self.committed_lines = committed_lines


class TooManyFullScansError(UnavailableError):
    """As many full scans as may run at once are running: the database was not asked."""


class NoRoomError(UnavailableError):
    """This process holds as much of request bodies as it may: the rest of this one was not kept."""


class IntentError(PqsError):
    """The intent can never be carried out as it is."""


class RefusedValuesError(PqsError):
    """A table never accepts these values. Nothing was written."""


class EffectDownError(UnavailableError):
    """The other side of an effect, such as Consul, does not answer: its circuit breaker counts this error."""


class NotNowError(PqsError):
    """The other side of an effect answered, but did not carry this one out: try again later."""


class BusError(PqsError):
    """The bus may not have the message: publish it again later. It may then be there twice."""


class MessageRefusedError(BusError):
    """The bus never accepts this message: it is too large, or the topic does not hold such messages."""


class StartError(PqsError):
    """The service or a command cannot start; the message says what to do about it."""


class BadTokenError(PqsError):
    """The token of a follower is damaged."""


class ChangesOffError(PqsError):
    """The change log is switched off."""


class ChangesGoneError(PqsError):
    """The change that a token names is not in the log: the follower has to begin anew, at `oldest` or by a snapshot.

    `reason` is `expired`, or `history`: the database has another past. `oldest` is the token of the log's beginning.
    """

    def __init__(self, reason: str, oldest: str) -> None:
        said = {
            "expired": "changes after this token were removed: they are older than PQS_CHANGES_KEEP",
            "history": "this token is of another past: the database was restored, or a failover lost commits",
        }
        super().__init__(f"{said[reason]}; begin anew with a snapshot, or at the oldest change")
        self.reason = reason
        self.oldest = oldest


class HistoryGoneError(PqsError):
    """The change log does not go back to the moment that was asked for."""


class TooManyFollowersError(UnavailableError):
    """As many requests follow the changes as this process takes."""
