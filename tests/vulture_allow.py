"""What is used from outside the code that vulture sees, and why."""

from app import main, settings
from app.api import bodies, schemas, workflows
from app.client.entities import Entities, Overdue
from app.client.events import Events
from app.domain import decider, events
from app.domain.states import RegistrationState
from app.domain.workflows import Provenance
from app.outbound import kafka, postgres
from app.runtime import protocol
from app.store import registrations, tables, watermarks
from app.wire import envelopes

_used_from_outside: list[object] = [
    # uvicorn imports it by name.
    main.from_environment,
    # The transport and uvicorn's server call them.
    protocol.HttpProtocol.connection_made,
    protocol.HttpProtocol.connection_lost,
    protocol.HttpProtocol.data_received,
    protocol.HttpProtocol.eof_received,
    protocol.HttpProtocol.pause_writing,
    protocol.HttpProtocol.shutdown,
    # Contract: operations and predicates for those who use the package from Python.
    registrations.is_stale,
    registrations.get_registration_status,
    RegistrationState.is_active,
    RegistrationState.requires_ack,
    RegistrationState.requires_liveness,
    RegistrationState.can_retry,
    # Calls of the Python client.
    Entities.lookup,
    Overdue.ack,
    Overdue.liveness,
    Events.send_all,
    postgres.upsert_registration,
    postgres.update_registration,
    # What the relay and the sweep are built on.
    decider.expire,
    kafka.KafkaBus.publish_envelope,
    # Tests go through them.
    envelopes.Envelope.correlationid,
    envelopes.Envelope.from_json,
    events.FACT_CLASSES,
    events.TRIGGER_CLASSES,
    # pydantic calls it.
    settings.Settings._kafka_has_servers,
    # Chosen by name, in the environment.
    settings.LogLevel.DEBUG,
    settings.LogLevel.WARNING,
    settings.LogLevel.ERROR,
    # Starlette reads them.
    bodies.json_answer(b"").background,
    bodies.json_answer(b"").raw_headers,
    workflows._Key.regex,
    workflows._Key.to_string,
    # SQLAlchemy reads them.
    tables.Base.metadata,
    tables.Base.type_annotation_map,
    tables.WorkflowState,
    tables.WorkflowAction.state_digest,
    tables.WorkflowAction.committed_at,
    # Read by what decodes it.
    Provenance.effect_id,
    tables.OutboxEntry.created_at,
    tables.Watermark.caught_up_at,
    # Fields of answers: encoded, never read.
    schemas.EntityPage.next_cursor,
    watermarks.Watermark.caught_up_at,
    schemas.OverdueRegistration.overdue_seconds,
    schemas.OverduePage.next_deadline,
    schemas.Summary.applied,
    schemas.Summary.ignored,
    schemas.Summary.duplicate,
    schemas.Summary.stale,
    schemas.Summary.early,
    schemas.Summary.conflict,
    schemas.StreamSummary.invalid,
    schemas.Problem.instance,
]
