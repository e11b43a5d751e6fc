"""Workflow state: the row of one workflow, its provenance, and the results of a commit."""

from typing import Annotated

from msgspec import Meta, Struct

from app.domain.events import Time

NONE = 0  # the version of a workflow that has no row yet
MAX_KEY = 255  # characters
MAX_STATE = 1024 * 1024  # bytes of a state, as compact JSON in UTF-8
MAX_SCHEMA_VERSION = 2**31 - 1

State = Annotated[dict[str, object], Meta(min_length=1)]  # a JSON object that is not empty
SchemaVersion = Annotated[int, Meta(ge=1, le=MAX_SCHEMA_VERSION)]


class Provenance(Struct, frozen=True):
    """The origin of a state: the effect that computed it, its time and its action. It may have more fields."""

    effect_id: Annotated[str, Meta(min_length=1)]
    timestamp: Time
    action_id: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class Workflow(Struct, frozen=True):
    """The row of one workflow. The fields are the columns of `workflow_state`, in their order."""

    workflow_key: str
    version: int
    state: dict[str, object]
    updated_at: Time
    schema_version: int
    provenance: dict[str, object]


class Commit(Struct, frozen=True):
    """A state to be written where the workflow still has `expected_version`: NONE is for no row.

    `state` and `provenance` are JSON, checked; `action_id` is the provenance's.
    """

    workflow_key: str
    expected_version: int
    state: str
    schema_version: int
    provenance: str
    action_id: str | None


class Committed(Struct, frozen=True):
    """The commit is stored, as this row. `replayed`: it was stored before, and this is the answer it got then."""

    workflow: Workflow
    replayed: bool = False


class StateConflict(Struct, frozen=True):
    """The workflow is not at the version that the commit builds on: nothing was written. `current` is its row.

    `expected_version` is NONE where the commit expected no row.
    """

    expected_version: int
    current: Workflow | None

    @property
    def actual_version(self) -> int | None:
        """The version that the workflow has, None where it has no row."""
        return None if self.current is None else self.current.version


class ActionConflict(Struct, frozen=True):
    """The action was applied before, as this version and with another state: nothing was written."""

    action_id: str
    version: int
