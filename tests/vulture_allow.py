"""Code that is used where vulture does not look, and the reason."""

from app import main, settings
from app.api import bodies, workflows
from app.domain import events
from app.domain.changes import ChangeOutcome
from app.domain.states import RegistrationState
from app.domain.workflows import Provenance
from app.outbound import kafka, postgres
from app.runtime import protocol, side_server
from app.settings import types as setting_types
from app.store import access_tables, letter_tables, tables
from app.wire import answers, envelopes, overview
from pqs_client import Client, tokens
from pqs_client.entities import Entities, OverdueScans
from pqs_client.events import Events
from pqs_client.tokens import TokenAuth

_used_from_outside: list[object] = [
    # In the schema, by statements that are written as SQL.
    tables.CHANGE_IDS,
    tables.ChangesFloor,
    letter_tables.HeldMessage,
    letter_tables.HeldEntityRow.held_at,
    letter_tables.DeadLetterRun,
    letter_tables.DeadLetterRun.leased_until,
    access_tables.ConsoleSession,
    tables.SnapshotTopic,
    tables.SnapshotTopic.change_id,
    tables.SnapshotTopic.change_mark,
    tables.SnapshotTopic.after_entity_id,
    tables.SnapshotTopic.after_domain,
    tables.SnapshotTopic.begun_at,
    tables.SnapshotTopic.finished_at,
    tables.SnapshotTopic.held_until,
    # In the log's contract: what forgets and rebuilds will write.
    ChangeOutcome.REBUILT,
    # uvicorn imports it by name.
    main.from_environment,
    # The transport and uvicorn's server call them.
    protocol.HttpProtocol.connection_made,
    protocol.HttpProtocol.connection_lost,
    protocol.HttpProtocol.data_received,
    protocol.HttpProtocol.eof_received,
    protocol.HttpProtocol.pause_writing,
    side_server.SideServer.capture_signals,
    # Contract: a predicate for users of the package.
    RegistrationState.can_retry,
    # Calls of the Python client.
    Entities.lookup,
    OverdueScans.ack,
    OverdueScans.liveness,
    Events.send_all,
    Client.republish_snapshots,
    # httpx calls it.
    TokenAuth.auth_flow,
    # Contract: the intents of the database.
    postgres.upsert_registration,
    postgres.update_registration,
    # Contract: one of a bus's two calls.
    kafka.KafkaBus.publish_envelope,
    # Fields of answers and messages: encoded, never read.
    answers.Ready.read_database,
    overview.OverdueCount.is_more,
    overview.OverdueCount.oldest_deadline,
    overview.SweepState.is_on,
    overview.SweepState.meaning,
    answers.SnapshotProgress.at_work,
    envelopes.Envelope.correlationid,
    # The generated reference lists them.
    events.TRIGGER_CLASSES,
    # Read by their names, as secrets.
    settings.Settings.database_read_url,
    settings.Settings.database_read_url_file,
    settings.Settings.database_url_file,
    settings.Settings.consul_token_file,
    settings.Settings.oidc_client_secret,
    settings.Settings.oidc_client_secret_file,
    settings.Settings.kafka_options_file,
    # Values that come from the environment.
    setting_types.KafkaSecurity.SSL,
    setting_types.KafkaSecurity.SASL_PLAINTEXT,
    setting_types.KafkaSecurity.SASL_SSL,
    setting_types.DeadLetterRule.PASS,
    # pydantic calls it.
    settings.Settings._kafka_has_servers,
    # Chosen by name, in the environment.
    settings.LogLevel.DEBUG,
    settings.LogLevel.ERROR,
    # httpx calls it.
    tokens.TokenAuth.auth_flow,
    # Starlette reads them.
    bodies.json_answer(b"").background,
    workflows._Key.regex,
    workflows._Key.to_string,
    # SQLAlchemy reads them.
    tables.Base.type_annotation_map,
    tables.RegistrationProjection,
    tables.StateCount,
    tables.WorkflowState,
    tables.WorkflowAction.state_digest,
    tables.WorkflowAction.committed_at,
    tables.Watermark.caught_up_at,
    access_tables.METADATA,
    access_tables.ApiKey,
    access_tables.ApiKeyRevision.single,
    access_tables.WorkflowQuota,
    # Checked when it is decoded, never read.
    Provenance.effect_id,
    # Fields of answers: encoded, never read.
    answers.OverdueRegistration.overdue_seconds,
    answers.Summary.applied,
    answers.Summary.ignored,
    answers.Summary.duplicate,
    answers.StreamSummary.invalid,
    answers.StreamSummary.forbidden,
]
