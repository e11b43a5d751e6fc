"""The fields of every event, and the event types: facts and triggers.

msgspec decodes them straight from JSON; `app.wire.events` says what is wrong.
"""

from datetime import datetime
from typing import Annotated, get_args
from uuid import UUID

from msgspec import Meta, Struct

from app.domain.positions import Position
from app.domain.states import RegistrationState

DEFAULT_DOMAIN = "registration"
DEFAULT_NODE_VERSION = "1.0.0"

Domain = Annotated[str, Meta(min_length=1, max_length=128)]
NodeType = Annotated[str, Meta(min_length=1, max_length=64)]
NodeVersion = Annotated[str, Meta(min_length=1, max_length=32)]
Time = Annotated[datetime, Meta(tz=True)]
Reason = Annotated[str, Meta(min_length=1, max_length=1000)]
Name = tuple[UUID, str]  # what names an entity: `entity_id` and `domain`
Key = tuple[bytes, str]  # the same as the key of a dictionary: see key_of()
# A JSON object. The node decides its content; PostgreSQL keeps it as jsonb.
Capabilities = dict[str, object]


def key_of(entity_id: UUID, domain: str) -> Key:
    """The key of an entity in dictionaries and sets.

    Never the UUID itself: its hash is its number modulo 2^61-1, so a client could choose ids that all collide, and
    the cost would grow with the square of their number. The hash of bytes is keyed, by another key in each process.
    """
    return entity_id.bytes, domain


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The content of an event. Unknown fields are refused."""


class NoData(Data, frozen=True):
    """The content of an event whose type says everything."""


class InitiatedData(Data, frozen=True, kw_only=True):
    """A registration begins: the node's description."""

    node_type: NodeType
    node_version: NodeVersion = DEFAULT_NODE_VERSION
    capabilities: Capabilities = {}


class AckDeadlineData(Data, frozen=True, kw_only=True, omit_defaults=True):
    """The time by which the node must acknowledge. It may be absent."""

    ack_deadline: Time | None = None


class ActivatedData(Data, frozen=True, kw_only=True, omit_defaults=True):
    """The node is active: its first liveness deadline, and its capabilities. Both may be absent."""

    liveness_deadline: Time | None = None
    capabilities: Capabilities | None = None


class HeartbeatData(Data, frozen=True, kw_only=True):
    """The node is alive: the time of the heartbeat, and the liveness deadline that follows."""

    heartbeat_at: Time | None = None
    liveness_deadline: Time | None = None


class RecordedData(Data, frozen=True, kw_only=True):
    """The whole row, from a writer that folds elsewhere."""

    current_state: RegistrationState
    node_type: NodeType
    registered_at: Time
    node_version: NodeVersion = DEFAULT_NODE_VERSION
    capabilities: Capabilities = {}
    ack_deadline: Time | None = None
    liveness_deadline: Time | None = None
    last_heartbeat_at: Time | None = None
    ack_timeout_emitted_at: Time | None = None
    liveness_timeout_emitted_at: Time | None = None


class ForgottenData(Data, frozen=True, kw_only=True, omit_defaults=True):
    """Why the entity is forgotten, and whether for good: a permanent tombstone takes no new registration."""

    reason: Reason | None = None
    permanent: bool = False


class EventBase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", gc=False):
    """The fields of every event: an immutable fact about one entity."""

    event_id: UUID
    entity_id: UUID
    position: Position
    occurred_at: Time
    domain: Domain = DEFAULT_DOMAIN
    correlation_id: UUID | None = None
    data: Data = NoData()

    @property
    def type(self) -> str:
        """The name of the event type, such as `node.heartbeat`."""
        return str(self.__struct_config__.tag)

    @property
    def key(self) -> Key:
        """The entity's key: see key_of()."""
        return self.entity_id.bytes, self.domain


class Initiated(EventBase, frozen=True, kw_only=True, tag="registration.initiated"):
    """A node asks to be registered."""

    data: InitiatedData


class Accepted(EventBase, frozen=True, kw_only=True, tag="registration.accepted"):
    """The registration is accepted; the node must acknowledge in time."""

    data: AckDeadlineData = AckDeadlineData()


class AckRequested(EventBase, frozen=True, kw_only=True, tag="registration.ack_requested"):
    """The node was asked to acknowledge."""

    data: AckDeadlineData = AckDeadlineData()


class Rejected(EventBase, frozen=True, kw_only=True, tag="registration.rejected"):
    """The registration is refused."""

    data: NoData = NoData()


class AckTimedOut(EventBase, frozen=True, kw_only=True, tag="registration.ack_timed_out"):
    """The node did not acknowledge in time."""

    data: NoData = NoData()


class AckReceived(EventBase, frozen=True, kw_only=True, tag="registration.ack_received"):
    """The node acknowledged."""

    data: NoData = NoData()


class Activated(EventBase, frozen=True, kw_only=True, tag="registration.activated"):
    """The node is active, and must send heartbeats in time."""

    data: ActivatedData = ActivatedData()


class Refreshed(EventBase, frozen=True, kw_only=True, tag="registration.refreshed"):
    """An active node described itself anew: the description replaces the one before; the state stays."""

    data: InitiatedData


class Heartbeat(EventBase, frozen=True, kw_only=True, tag="node.heartbeat"):
    """The node sent a heartbeat."""

    data: HeartbeatData = HeartbeatData()


class LivenessExpired(EventBase, frozen=True, kw_only=True, tag="registration.liveness_expired"):
    """The node sent no heartbeat in time."""

    data: NoData = NoData()


class Recorded(EventBase, frozen=True, kw_only=True, tag="registration.recorded"):
    """The row as another writer folded it."""

    data: RecordedData


class Forgotten(EventBase, frozen=True, kw_only=True, tag="registration.forgotten"):
    """The entity is forgotten: its row becomes a tombstone. Intents follow from it, so it is a trigger as well."""

    data: ForgottenData = ForgottenData()


class Introspected(EventBase, frozen=True, kw_only=True, tag="node.introspected"):
    """The node describes itself, and wants to be registered."""

    data: InitiatedData


class RegistrationAcked(EventBase, frozen=True, kw_only=True, tag="node.registration_acked"):
    """The node knows that it is registered."""

    data: NoData = NoData()


class Deregistered(EventBase, frozen=True, kw_only=True, tag="node.deregistered"):
    """The node leaves."""

    data: NoData = NoData()


# What evolve() takes: an event that changes a registration.
Fact = (
    Initiated
    | Accepted
    | AckRequested
    | Rejected
    | AckTimedOut
    | AckReceived
    | Activated
    | Refreshed
    | Heartbeat
    | LivenessExpired
    | Recorded
    | Forgotten
)
# What decide() takes: an action of a node, from which facts follow. A heartbeat and a forget are both.
Trigger = Introspected | RegistrationAcked | Heartbeat | Deregistered | Forgotten
# Every event that the service accepts.
Event = Fact | Trigger

FACT_CLASSES: tuple[type[Fact], ...] = get_args(Fact)
TRIGGER_CLASSES: tuple[type[Trigger], ...] = get_args(Trigger)
EVENT_CLASSES: tuple[type[Event], ...] = get_args(Event)
EVENT_TYPES: tuple[str, ...] = tuple(str(cls.__struct_config__.tag) for cls in EVENT_CLASSES)
