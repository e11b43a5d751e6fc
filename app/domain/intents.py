"""Intents: the effects that the decider asks for, and what each is told.

`app/outbound/contract.yaml` says who handles which. The `postgres.*` intents are how a change of one row looks; the
projector writes the same changes in batches. The others leave through the outbox.
"""

from collections.abc import Mapping
from typing import Annotated
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from app.domain.events import Capabilities, Domain, NodeType, NodeVersion, Time
from app.domain.positions import MAX_NUMBER, Number, Partition
from app.domain.registration import Registration
from app.domain.states import RegistrationState

Version = Annotated[int, Meta(ge=1, le=MAX_NUMBER)]


class Columns(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns that an update may name, and what each holds: all of the table's but its key; a test compares.

    Converting to it checks names and values, and reads times, ids and states that are strings.
    """

    current_state: RegistrationState | UnsetType = UNSET
    node_type: NodeType | UnsetType = UNSET
    node_version: NodeVersion | UnsetType = UNSET
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


class Payload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="intent"):
    """What an intent is told: which entity it is about, at least."""

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
    """Make the node known to Consul; `version` is the row's."""

    node_type: NodeType
    tags: tuple[str, ...]
    version: Version


class DeregisterService(Payload, frozen=True, kw_only=True, tag="consul.deregister"):
    """Make Consul forget the node."""


Intent = UpsertRegistration | UpdateRegistration | RegisterService | DeregisterService

INTENT_CLASSES: tuple[type[Intent], ...] = (
    UpsertRegistration,
    UpdateRegistration,
    RegisterService,
    DeregisterService,
)
INTENTS: tuple[str, ...] = tuple(str(cls.__struct_config__.tag) for cls in INTENT_CLASSES)


def upsert(registration: Registration, read: Registration | None) -> UpsertRegistration:
    """The intent to write a whole row."""
    return UpsertRegistration(
        entity_id=registration.entity_id,
        domain=registration.domain,
        registration=registration,
        read_version=None if read is None else read.version,
    )


def update(registration: Registration, read: Registration) -> UpdateRegistration:
    """The intent to write what is different from the row that was read."""
    pairs = {name: (getattr(registration, name), getattr(read, name)) for name in registration.__struct_fields__}
    return UpdateRegistration(
        entity_id=registration.entity_id,
        domain=registration.domain,
        changes={name: new for name, (new, old) in pairs.items() if new != old},
        read_version=read.version,
    )


def register(registration: Registration) -> RegisterService:
    """The intent to make the node known; tags are the strings among the capabilities' `tags`."""
    tags = registration.capabilities.get("tags")
    return RegisterService(
        entity_id=registration.entity_id,
        domain=registration.domain,
        node_type=registration.node_type,
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        version=registration.version,
    )


def deregister(registration: Registration) -> DeregisterService:
    """The intent to have it forgotten."""
    return DeregisterService(entity_id=registration.entity_id, domain=registration.domain)
