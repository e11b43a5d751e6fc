"""The peer *plain*: point lookup and single heartbeat in an ordinary service with FastAPI and SQLAlchemy's ORM.

The ORM guards its writes itself: `version_id_col` puts `WHERE version = <as read>` on every UPDATE.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import URL, BigInteger, Enum, String, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm.exc import StaleDataError

ATTEMPTS = 10
LIVENESS_WINDOW = timedelta(seconds=90)
POOL_SIZE = 16  # connections of a worker
STATES = (
    "pending_registration",
    "accepted",
    "awaiting_ack",
    "rejected",
    "ack_timed_out",
    "ack_received",
    "active",
    "liveness_expired",
)
TERMINAL = {"rejected", "liveness_expired"}


class Base(DeclarativeBase):
    """The storage types of Python types."""

    type_annotation_map: ClassVar = {datetime: TIMESTAMP(timezone=True), UUID: Uuid(), int: BigInteger()}


class Registration(Base):
    """The row of one entity."""

    __tablename__ = "registration_projections"

    entity_id: Mapped[UUID] = mapped_column(primary_key=True)
    domain: Mapped[str] = mapped_column(String(128), primary_key=True)
    current_state: Mapped[str] = mapped_column(Enum(*STATES, name="registration_state"))
    node_type: Mapped[str] = mapped_column(String(64))
    node_version: Mapped[str] = mapped_column(String(32))
    capabilities: Mapped[dict[str, object]] = mapped_column(JSONB())
    ack_deadline: Mapped[datetime | None]
    liveness_deadline: Mapped[datetime | None]
    last_heartbeat_at: Mapped[datetime | None]
    ack_timeout_emitted_at: Mapped[datetime | None]
    liveness_timeout_emitted_at: Mapped[datetime | None]
    last_applied_event_id: Mapped[UUID]
    last_applied_partition: Mapped[str | None] = mapped_column(String(300))
    last_applied_offset: Mapped[int | None]
    last_applied_sequence: Mapped[int | None]
    registered_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    correlation_id: Mapped[UUID | None]
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - a ClassVar here would not fit its base class


class RegistrationOut(BaseModel):
    """A row as answers show it."""

    model_config = ConfigDict(from_attributes=True)

    entity_id: UUID
    domain: str
    current_state: str
    node_type: str
    node_version: str
    capabilities: dict[str, object]
    ack_deadline: datetime | None
    liveness_deadline: datetime | None
    last_heartbeat_at: datetime | None
    ack_timeout_emitted_at: datetime | None
    liveness_timeout_emitted_at: datetime | None
    last_applied_event_id: UUID
    last_applied_partition: str | None
    last_applied_offset: int | None
    last_applied_sequence: int | None
    registered_at: datetime
    updated_at: datetime
    correlation_id: UUID | None
    version: int


class Strict(BaseModel):
    """A body that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Position(Strict):
    """The position of an event in its source."""

    sequence: Annotated[int, Field(ge=0, lt=2**63)]


class HeartbeatData(Strict):
    """The data of a heartbeat."""

    heartbeat_at: AwareDatetime | None = None
    liveness_deadline: AwareDatetime | None = None


class Heartbeat(Strict):
    """The only event type of the measurement."""

    event_id: UUID
    type: Literal["node.heartbeat"]
    entity_id: UUID
    domain: Annotated[str, Field(min_length=1, max_length=128)] = "registration"
    position: Position
    occurred_at: AwareDatetime
    correlation_id: UUID | None = None
    data: HeartbeatData = HeartbeatData()


class Result(BaseModel):
    """The result of an event."""

    event_id: UUID
    outcome: str
    reason: str | None
    entity_id: UUID
    domain: str
    current_state: str | None
    version: int | None
    stands_at: Position | None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One pool of connections for each worker."""
    address = urlsplit(os.environ["DATABASE_URL"])
    host = {"host": parse_qs(address.query)["host"][0]}
    url = URL.create("postgresql+asyncpg", username=address.username, database=address.path[1:], query=host)
    engine = create_async_engine(url, pool_size=POOL_SIZE, max_overflow=0)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    yield
    await engine.dispose()


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """A session for one request."""
    async with request.app.state.sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(open_session)]
app = FastAPI(lifespan=lifespan)


@app.get("/v1/entities/{entity_id}")
async def get_entity(
    entity_id: UUID, session: Session, response: Response, domain: str = "registration"
) -> RegistrationOut:
    """Answer with the whole row."""
    row = await session.get(Registration, (entity_id, domain))
    if row is None:
        raise HTTPException(404, f"there is no entity {entity_id}")
    response.headers["ETag"] = f'"{row.version}"'
    return RegistrationOut.model_validate(row)


@app.post("/v1/events")
async def post_event(event: Heartbeat, session: Session) -> Result:
    """Apply a heartbeat, and answer after the commit."""
    for _ in range(ATTEMPTS):
        row = await session.get(Registration, (event.entity_id, event.domain))
        outcome, reason = take_in(row, event)
        try:
            await session.commit()
        except StaleDataError:
            await session.rollback()
            continue
        return Result(
            event_id=event.event_id,
            outcome=outcome,
            reason=reason,
            entity_id=event.entity_id,
            domain=event.domain,
            current_state=row.current_state if row else None,
            version=row.version if row else None,
            stands_at=Position(sequence=row.last_applied_sequence or 0) if row else None,
        )
    raise HTTPException(503, "other writers were faster")


def take_in(row: Registration | None, event: Heartbeat) -> tuple[str, str | None]:
    """The outcome and its reason; writes an applied event into the row."""
    if row is None:
        return "ignored", "unknown entity"
    if row.last_applied_sequence is None:
        raise HTTPException(409, "the positions can't be compared")
    if event.position.sequence == row.last_applied_sequence:
        if event.event_id == row.last_applied_event_id:
            return "duplicate", "this event has already been applied"
        raise HTTPException(409, "two events claim one position")
    if event.position.sequence < row.last_applied_sequence:
        return "stale", "the row is further on"
    row.last_applied_event_id = event.event_id
    row.last_applied_sequence = event.position.sequence
    row.correlation_id = event.correlation_id
    row.updated_at = event.occurred_at
    heartbeat_at = event.data.heartbeat_at or event.occurred_at
    if row.current_state in TERMINAL:
        return "ignored", "the state is terminal"
    if row.last_heartbeat_at is not None and heartbeat_at <= row.last_heartbeat_at:
        return "ignored", "there was a newer heartbeat"
    computed = heartbeat_at + LIVENESS_WINDOW
    row.last_heartbeat_at = heartbeat_at
    row.liveness_deadline = event.data.liveness_deadline or max(computed, row.liveness_deadline or computed)
    row.liveness_timeout_emitted_at = None
    return "applied", None


@app.get("/readyz")
async def readyz(session: Session) -> dict[str, str]:
    """Answer if the database answers."""
    await session.execute(text("SELECT 1"))
    return {"status": "ready"}
