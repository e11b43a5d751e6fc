"""Intents: the effects that the decider asks for, and their payloads.

`app/outbound/contract.yaml` names the handler of each. The `postgres.*` intents describe the change of one row, which
the projector writes in batches. The others leave through the outbox.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from app.domain.events import Capabilities, Domain, NodeType, Time
from app.domain.positions import MAX_NUMBER, Number, Partition
from app.domain.registration import Registration
from app.domain.states import RegistrationState

Version = Annotated[int, Meta(ge=1, le=MAX_NUMBER)]


class Columns(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns that an update may name, with their types: all columns but the key; a test compares them.

    Converting to it checks names and values, and reads strings as times, ids and states.
    """

    current_state: RegistrationState | UnsetType = UNSET
    node_type: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET  # empty in a tombstone, as the next
    node_version: Annotated[str, Meta(max_length=32)] | UnsetType = UNSET
    capabilities: Capabilities | UnsetType = UNSET
    ack_deadline: Time | UnsetType | None = UNSET
    liveness_deadline: Time | UnsetType | None = UNSET
    last_heartbeat_at: Time | UnsetType | None = UNSET
    ack_timeout_emitted_at: Time | UnsetType | None = UNSET
    liveness_timeout_emitted_at: Time | UnsetType | None = UNSET
    last_applied_event_id: UUID | UnsetType = UNSET
    last_applied_partition: Partition | UnsetType | None = UNSET
    last_applied_offset: Number | UnsetType | None = UNSET
    last_applied_sequence: Number | UnsetType | None = UNSET
    registered_at: Time | UnsetType = UNSET
    updated_at: Time | UnsetType = UNSET
    correlation_id: UUID | UnsetType | None = UNSET
    version: Version | UnsetType = UNSET
    forgotten_at: Time | UnsetType | None = UNSET
    forgotten_permanently: bool | UnsetType | None = UNSET


class Payload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="intent"):
    """The payload of an intent: the entity that it is about, at least."""

    entity_id: UUID
    domain: Domain

    @property
    def name(self) -> str:
        """The intent's name, such as `consul.register`."""
        return str(self.__struct_config__.tag)


class UpsertRegistration(Payload, frozen=True, kw_only=True, tag="postgres.upsert_registration"):
    """Write the whole row, in place of the one with `read_version`; None: there was none."""

    registration: Registration
    read_version: Version | None


class UpdateRegistration(Payload, frozen=True, kw_only=True, tag="postgres.update_registration"):
    """Write the columns that `changes` names, in the row that still has `read_version`."""

    changes: Mapping[str, object]
    read_version: Version


class RegisterService(Payload, frozen=True, kw_only=True, tag="consul.register"):
    """Make the node known to Consul, `passing` or not yet; `version` is the row's.

    The handler finds the node's address in the capabilities. Entries of earlier releases lack the last two.
    """

    node_type: NodeType
    tags: tuple[str, ...]
    version: Version
    capabilities: Capabilities = {}
    passing: bool = False


class ActivateService(RegisterService, frozen=True, kw_only=True, tag="consul.activate"):
    """Tell Consul that the node is alive from now on; a Consul that does not know it is told all of it."""


class DeregisterService(Payload, frozen=True, kw_only=True, tag="consul.deregister"):
    """Make Consul forget the node."""


Intent = UpsertRegistration | UpdateRegistration | RegisterService | ActivateService | DeregisterService

INTENT_CLASSES: tuple[type[Intent], ...] = (
    UpsertRegistration,
    UpdateRegistration,
    RegisterService,
    ActivateService,
    DeregisterService,
)
INTENT_NAMES: tuple[str, ...] = tuple(str(cls.__struct_config__.tag) for cls in INTENT_CLASSES)


def upsert(registration: Registration, read: Registration | None) -> UpsertRegistration:
    """The intent to write a whole row."""
    return UpsertRegistration(
        entity_id=registration.entity_id,
        domain=registration.domain,
        registration=registration,
        read_version=None if read is None else read.version,
    )


class Difference(Mapping[str, object]):
    """The columns in which a row differs from the row that was read, with their new values.

    It is computed when somebody asks for it: the projector, which decides most often, never does.
    """

    __slots__ = ("_columns", "_read", "_registration")

    def __init__(self, registration: Registration, read: Registration) -> None:
        self._registration = registration
        self._read = read
        self._columns: dict[str, object] | None = None

    def _computed(self) -> dict[str, object]:
        if self._columns is None:
            pairs = {
                name: (getattr(self._registration, name), getattr(self._read, name))
                for name in self._registration.__struct_fields__
            }
            self._columns = {name: new for name, (new, old) in pairs.items() if new != old}
        return self._columns

    def __getitem__(self, name: str) -> object:
        return self._computed()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._computed())

    def __len__(self) -> int:
        return len(self._computed())

    def __repr__(self) -> str:
        return repr(self._computed())


def update(registration: Registration, read: Registration) -> UpdateRegistration:
    """The intent to write the columns that differ from the row that was read."""
    return UpdateRegistration(
        entity_id=registration.entity_id,
        domain=registration.domain,
        changes=Difference(registration, read),
        read_version=read.version,
    )


def register(registration: Registration) -> RegisterService:
    """The intent to make the node known, as passing if it is active."""
    return RegisterService(**_service(registration))


def activate(registration: Registration) -> ActivateService:
    """The intent to make Consul pass the node."""
    return ActivateService(**_service(registration))


def _service(registration: Registration) -> dict[str, Any]:
    """The payload that describes a node; tags are the strings among the capabilities' `tags`."""
    tags = registration.capabilities.get("tags")
    return {
        "entity_id": registration.entity_id,
        "domain": registration.domain,
        "node_type": registration.node_type,
        "tags": tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        "version": registration.version,
        "capabilities": registration.capabilities,
        "passing": registration.current_state.is_active(),
    }


def deregister(registration: Registration) -> DeregisterService:
    """The intent to make Consul forget the node."""
    return DeregisterService(entity_id=registration.entity_id, domain=registration.domain)
