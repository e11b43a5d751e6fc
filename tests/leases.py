"""A second projection, leases on machines, on which the laws are tested besides the shipped projection."""

from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid5

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import BigInteger, Column, Enum, MetaData, SmallInteger, String, Table, Uuid
from sqlalchemy.dialects.postgresql import TIMESTAMP, CreateEnumType, dialect
from sqlalchemy.schema import CreateTable

from app.domain.decider import Decision
from app.domain.events import Data, EventBase, Time
from app.domain.positions import Position
from app.domain.projection import PartialChange, Projection, Timeout
from app.domain.registration import UNKNOWN_ENTITY, Ignored, Timing
from app.domain.rows import record
from app.store.database import Connection
from app.store.registrations import Store

TERM = timedelta(minutes=5)


class LeaseState(StrEnum):
    """Whether the machine has a holder."""

    FREE = "free"
    HELD = "held"
    LAPSED = "lapsed"


class Lease(Struct, frozen=True, gc=False):
    """The row of one machine."""

    entity_id: UUID
    domain: str
    lease_state: LeaseState
    holder: str
    ends_at: Time | None
    lapsed_at: Time | None
    last_applied_event_id: UUID
    last_applied_partition: str | None
    last_applied_offset: int | None
    last_applied_sequence: int | None
    updated_at: Time
    correlation_id: UUID | None
    version: int

    @property
    def position(self) -> Position:
        """The row's position in its source."""
        return Position(
            sequence=self.last_applied_sequence,
            partition=self.last_applied_partition,
            offset=self.last_applied_offset,
        )


class NotedData(Data, frozen=True, kw_only=True):
    """The columns of a whole row."""

    lease_state: LeaseState
    holder: str
    ends_at: Time | None = None


class Noted(EventBase, frozen=True, kw_only=True, tag="lease.noted"):
    """A whole row, as another writer folded it."""

    data: NotedData


class Renewed(EventBase, frozen=True, kw_only=True, tag="lease.renewed"):
    """The holder of the machine renews its lease."""


class Released(EventBase, frozen=True, kw_only=True, tag="lease.released"):
    """The holder of the machine gives it back."""


class Lapsed(EventBase, frozen=True, kw_only=True, tag="lease.lapsed"):
    """The lease ends without a renewal."""


class Asked(EventBase, frozen=True, kw_only=True, tag="machine.asked"):
    """A client asks for the machine: the current holder loses it."""


def evolve(lease: Lease | None, event: Noted | Renewed | Released | Lapsed, _timing: Timing) -> Lease | Ignored:
    """The effect of an event on a lease."""
    if isinstance(event, Noted):
        place = (event.position.partition, event.position.offset, event.position.sequence)
        row = (event.data.lease_state, event.data.holder, event.data.ends_at, None, event.event_id, *place)
        version = 1 if lease is None else lease.version + 1
        return Lease(event.entity_id, event.domain, *row, event.occurred_at, event.correlation_id, version)
    if lease is None:
        return Ignored(UNKNOWN_ENTITY)
    if lease.lease_state is not LeaseState.HELD:
        return Ignored(f"nobody holds it: {lease.lease_state}")
    if isinstance(event, Renewed):
        return record(lease, event, ends_at=event.occurred_at + TERM)
    state = LeaseState.FREE if isinstance(event, Released) else LeaseState.LAPSED
    return record(lease, event, lease_state=state, ends_at=None, lapsed_at=event.occurred_at)


def decide(lease: Lease | None, trigger: Asked, timing: Timing) -> Decision[Lease] | Ignored:
    """A request for a held machine has two events: it is released and lent anew."""
    names = ("entity_id", "domain", "position", "occurred_at", "correlation_id")
    envelope = {name: getattr(trigger, name) for name in names}
    released = Released(event_id=uuid5(trigger.event_id, "released"), **envelope)
    freed = evolve(lease, released, timing)
    if isinstance(freed, Ignored):
        return freed
    data = NotedData(lease_state=LeaseState.HELD, holder=str(trigger.event_id), ends_at=trigger.occurred_at)
    lent = Noted(event_id=uuid5(trigger.event_id, "noted"), data=data, **envelope)
    after = evolve(freed, lent, timing)
    assert isinstance(after, Lease)
    return Decision((released, lent), (), replace(after, last_applied_event_id=trigger.event_id))


def expire(lease: Lease, now: datetime) -> Decision[Lease] | Ignored:
    """A lease past its end lapses."""
    if lease.lease_state is not LeaseState.HELD or lease.ends_at is None or lease.ends_at >= now:
        return Ignored("it has not ended")
    event = Lapsed(
        event_id=uuid5(lease.last_applied_event_id, "lapsed"),
        entity_id=lease.entity_id,
        domain=lease.domain,
        position=lease.position,
        occurred_at=now,
    )
    after = evolve(lease, event, Timing())
    assert isinstance(after, Lease)
    return Decision((event,), (), after)


LEASE = Projection(
    name="lease",
    table="leases",
    row=Lease,
    events=(Noted, Renewed, Released, Lapsed),
    evolve=evolve,
    triggers=(Asked,),
    decide=decide,
    counted_by="lease_state",
    unchanged=(PartialChange(unchanged=("lease_state", "holder", "lapsed_at")),),
    deadlines={"end": Timeout("ends_at", "lapsed_at", (LeaseState.HELD,), expire)},
)

_metadata = MetaData()
_DIALECT = dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy has no types here
_STATE = Enum(LeaseState, name="lease_state", values_callable=lambda states: [state.value for state in states])
_TIME = TIMESTAMP(timezone=True)
_leases = Table(
    "leases",
    _metadata,
    Column("entity_id", Uuid(), primary_key=True),
    Column("domain", String(128), primary_key=True),
    Column("lease_state", _STATE, nullable=False),
    Column("holder", String(), nullable=False),
    Column("ends_at", _TIME),
    Column("lapsed_at", _TIME),
    Column("last_applied_event_id", Uuid(), nullable=False),
    Column("last_applied_partition", String(300)),
    Column("last_applied_offset", BigInteger()),
    Column("last_applied_sequence", BigInteger()),
    Column("updated_at", _TIME, nullable=False),
    Column("correlation_id", Uuid()),
    Column("version", BigInteger(), nullable=False),
)
_counts = Table(
    "lease_counts",
    _metadata,
    Column("domain", String(128), primary_key=True),
    Column("lease_state", _STATE, primary_key=True),
    Column("slot", SmallInteger(), primary_key=True),
    Column("count", BigInteger(), nullable=False),
)
LEASES = Store(LEASE, _metadata, counts="lease_counts")


async def create_tables(connection: Connection) -> None:
    """Create the tables of leases in a database."""
    for statement in (CreateEnumType(_STATE), CreateTable(_leases), CreateTable(_counts)):
        await connection.execute(str(statement.compile(dialect=_DIALECT)))
