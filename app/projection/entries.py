"""Outbox entries for the events and intents that follow from triggers and deadlines."""

from collections.abc import Callable, Mapping, Sequence, Sized
from datetime import UTC, datetime
from uuid import uuid5

from msgspec.structs import asdict, replace

from app.domain.decider import Decision
from app.domain.events import Data
from app.domain.intents import Intent
from app.store.outbox import EFFECT, TOPIC, Entry, Lines, packed, slot_of
from app.tracing.recorder import Recorder, recording
from app.wire.envelopes import SOURCE, Envelope, in_digits, to_lines, written_domain


class EntryBuilder:
    """Builds outbox entries for its destinations: a topic of the bus, and the handlers of intents."""

    def __init__(
        self, topic: str | None = None, handlers: Mapping[str, str] | None = None, *, source: str = SOURCE
    ) -> None:
        """`topic` is None without a bus. `handlers` maps intents that run after the transaction to their handlers.

        `source` is that of every envelope: with the id it identifies an event (CloudEvents 1.0, section 3.1).
        """
        self._source = source
        self._topic = topic
        self._handlers = handlers or {}
        self.on_commit: Callable[[], None] | None = None  # called after entries were committed; wakes a relay

    @property
    def destinations(self) -> list[str]:
        """The names of the destinations."""
        topics = [] if self._topic is None else [TOPIC + self._topic]
        return topics + [EFFECT + handler for handler in dict.fromkeys(self._handlers.values())]

    def build(self, decisions: Sequence[Decision]) -> list[Entry]:
        """The entries of these decisions. An entity's messages to a destination keep the order of decisions."""
        topic, handlers = self._topic, self._handlers
        trace = recording()
        events = (
            []
            if topic is None
            else packed(topic, [_lines(decision, self._source, trace) for decision in decisions if decision.events])
        )
        intents = (
            _intent_entry(handlers[intent.name], intent, decision, self._source, trace)
            for decision in decisions
            for intent in decision.intents
            if intent.name in handlers
        )
        return [*events, *intents] if handlers else events

    def committed(self, written: Sized) -> None:
        """Wake the relay if `written` is not empty: its entries are committed."""
        if written and self.on_commit is not None:
            self.on_commit()


def _lines(decision: Decision, source: str, trace: Recorder | None) -> Lines:
    """The events of one decision, as lines of envelopes."""
    events = decision.events
    version = decision.row.version - len(events)  # the version before the events
    first = events[0]  # all events have these fields from their trigger
    domain, time = written_domain(first.domain), first.occurred_at.astimezone(UTC)
    in_utc = first.occurred_at.tzinfo is UTC
    traceparent = None if trace is None else trace.traceparent_for(first.key)
    envelopes = [
        Envelope(
            id=event.event_id,
            source=source,
            type=event.type,
            subject=first.entity_id,
            time=time,
            partitionkey=first.entity_id,
            digits=in_digits(number),
            data=event.data if in_utc else _in_utc(event.data),
            domain=domain,
            correlationid=first.correlation_id,
            traceparent=traceparent,
        )
        for number, event in enumerate(events, start=version + 1)
    ]
    return Lines(slot_of(first.entity_id), len(envelopes), to_lines(envelopes))


def _in_utc(data: Data) -> Data:
    """The data with its times in UTC."""
    times = {name: value.astimezone(UTC) for name, value in asdict(data).items() if isinstance(value, datetime)}
    return replace(data, **times)


def _intent_entry(handler: str, intent: Intent, decision: Decision, source: str, trace: Recorder | None) -> Entry:
    envelope = to_lines([_intent_envelope(intent, decision, source, trace)])
    return Entry(EFFECT + handler, slot_of(intent.entity_id), intent.entity_id, 1, envelope[:-1].decode())


def _intent_envelope(intent: Intent, decision: Decision, source: str, trace: Recorder | None) -> Envelope:
    """The envelope of an intent. Its id is the same however often the decision is made."""
    event = decision.events[-1]
    return Envelope(
        id=uuid5(event.event_id, intent.name),
        source=source,
        type=intent.name,
        subject=intent.entity_id,
        time=event.occurred_at.astimezone(UTC),
        partitionkey=intent.entity_id,
        digits=in_digits(decision.row.version),
        data=intent,
        domain=written_domain(intent.domain),
        correlationid=event.correlation_id,
        traceparent=None if trace is None else trace.traceparent_for(event.key),
    )
