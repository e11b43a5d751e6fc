"""Everything that can go wrong by name, in one tree. No HTTP in it: `api/problems.py` turns a type into a status."""

from datetime import timedelta

from msgspec import Struct


class Fault(Struct, frozen=True):
    """One thing that is wrong with an input.

    `pointer` is a JSON pointer as a URI fragment (RFC 6901, section 6), such as `#/1/position`; for what is not in
    the body it starts with `#/query`, `#/path` or `#/header`. `detail` says what is wrong.
    """

    pointer: str
    detail: str


class PqsError(Exception):
    """The root of this project's errors. The message is for people, and holds no secrets."""


class UnreadableError(PqsError):
    """The input is not JSON at all; the message says where it breaks."""


class BadCursorError(PqsError):
    """The cursor is damaged, or was made by another query."""


class InvalidInputError(PqsError):
    """The input is JSON, and wrong: `faults` says what and where."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults))
        self.faults = faults


class TooLargeError(PqsError):
    """The body is larger than this service takes in one piece."""


class UnsupportedMediaError(PqsError):
    """The body's content type is none that this call reads."""


class UnsupportedCodingError(UnsupportedMediaError):
    """The body has a content coding that this service does not read."""


class MisdirectedError(PqsError):
    """The request is for a host that this service does not answer to."""


class ForeignOriginError(PqsError):
    """A page of another origin, which is not listed, would change something."""


class NotFoundError(PqsError):
    """There is no such row."""


class PreconditionRequiredError(PqsError):
    """A commit has to say what it builds on."""


class ActionConflictError(PqsError):
    """The action was applied already, with another state: as version `version` of its workflow."""

    def __init__(self, action_id: str, version: int) -> None:
        super().__init__(
            f"action {action_id} was applied already, as version {version}, and with another state or "
            "schema_version: another state needs an action_id of its own"
        )
        self.action_id = action_id
        self.version = version


class UnavailableError(PqsError):
    """The database cannot be asked now. What was sent may be sent again after `retry_after`."""

    def __init__(self, message: str, *, retry_after: timedelta = timedelta(seconds=1)) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DatabaseDownError(UnavailableError):
    """The database does not answer: this is what the circuit breaker counts."""


class PoolExhaustedError(UnavailableError):
    """Every connection of this process is in use: the database was not asked."""


class ContentionError(UnavailableError):
    """Other writers were faster at every attempt. Nothing was written."""


class SchemaMismatchError(UnavailableError):
    """The database's schema is not the one that this code expects."""


class IngestInterruptedError(UnavailableError):
    """The database failed in the middle of a stream: the first `committed_lines` lines are in."""

    def __init__(self, cause: UnavailableError, committed_lines: int) -> None:
        super().__init__(str(cause), retry_after=cause.retry_after)
        self.committed_lines = committed_lines


class TooManyWalksError(UnavailableError):
    """As many reads that walk through a domain run as may run at once: the database was not asked."""


class IntentError(PqsError):
    """An intent that cannot be carried out as it is, now or later."""


class RefusedValuesError(PqsError):
    """A table does not take values that were to be written, now or later. Nothing was written."""


class EffectDownError(UnavailableError):
    """The other side of an effect, such as Consul, does not answer: this is what its circuit breaker counts."""


class NotNowError(PqsError):
    """The other side of an effect has answered, and has not carried this one out: try it again later."""


class BusError(PqsError):
    """The bus is not known to have the message: publish it again later. It may be there twice then."""


class MessageRefusedError(BusError):
    """The bus does not take this message, now or later: it is too large, or not what the topic holds."""


class StartError(PqsError):
    """The service or a command cannot start; the message says what to do about it."""
