"""What follows from triggers and deadlines, as entries for the outbox."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import UTC, datetime
from uuid import uuid5

import msgspec

from app.bus.envelopes import Envelope, in_digits, to_lines, written_domain
from app.domain.decider import Decision
from app.domain.events import Fact
from app.domain.intents import Intent
from app.effects import contract
from app.settings import BusKind, Settings
from app.store.outbox import EFFECT, TOPIC, Entry

SOURCE = "urn:pqs"  # in every envelope; with the id it names an event (CloudEvents 1.0, section 3.1)


class Outgoing:
    """Where what follows is sent: events to a topic of the bus, intents to their handlers, or nowhere."""

    def __init__(self, topic: str | None = None, handlers: Mapping[str, str] | None = None) -> None:
        """`topic` is None without a bus. `handlers` has the intents that are carried out after the transaction."""
        self._topic = topic
        self._handlers = handlers or {}
        self.on_commit: Callable[[], None] | None = None  # called when entries are in the outbox: by it a relay wakes

    @property
    def destinations(self) -> list[str]:
        """Where messages go to."""
        topics = [] if self._topic is None else [TOPIC + self._topic]
        return topics + [EFFECT + handler for handler in dict.fromkeys(self._handlers.values())]

    def entries(self, decisions: Iterable[Decision]) -> list[Entry]:
        """The entries of some decisions, in their order; for each the events, in theirs, and then the intents."""
        return [entry for decision in decisions for entry in self._entries(decision)]

    def committed(self, written: Sized) -> None:
        """Say that entries, or those of decisions, are in the outbox now, so that they are sent at once."""
        if written and self.on_commit is not None:
            self.on_commit()

    def _entries(self, decision: Decision) -> Iterator[Entry]:
        if self._topic is not None and decision.events:
            version = decision.registration.version - len(decision.events)
            yield _entry(TOPIC + self._topic, decision, _event_envelopes(decision.events, version))
        for intent in decision.intents:
            handler = self._handlers.get(intent.name)
            if handler is not None:
                yield _entry(EFFECT + handler, decision, [_intent_envelope(intent, decision)])


def outgoing_of(settings: Settings) -> Outgoing:
    """Where these settings send what follows. Raises StartError as `routes_of` does."""
    topic = None if settings.bus is BusKind.OFF else settings.topic_out
    return Outgoing(topic, contract.after_the_transaction(contract.routes_of(settings)))


def _event_envelopes(events: Sequence[Fact], version: int) -> list[Envelope]:
    """The events of one decision, without what they do not say. `version` is the row's before them."""
    first = events[0]  # what all have from their trigger is looked up once
    domain, time = written_domain(first.domain), first.occurred_at.astimezone(UTC)
    return [
        Envelope(
            id=event.event_id,
            source=SOURCE,
            type=event.type,
            subject=first.entity_id,
            time=time,
            partitionkey=first.entity_id,
            digits=in_digits(number),
            data={
                name: value.astimezone(UTC) if isinstance(value, datetime) else value
                for name in event.data.__struct_fields__
                if (value := getattr(event.data, name)) is not None
            },
            domain=domain,
            correlationid=first.correlation_id,
        )
        for number, event in enumerate(events, start=version + 1)
    ]


def _intent_envelope(intent: Intent, decision: Decision) -> Envelope:
    """An intent for its handler. Its id stays the same however often the decision is made."""
    event = decision.events[-1]
    return Envelope(
        id=uuid5(event.event_id, intent.name),
        source=SOURCE,
        type=intent.name,
        subject=intent.entity_id,
        time=event.occurred_at.astimezone(UTC),
        partitionkey=intent.entity_id,
        digits=in_digits(decision.registration.version),
        data=msgspec.to_builtins(intent),
        domain=written_domain(intent.domain),
        correlationid=event.correlation_id,
    )


def _entry(destination: str, decision: Decision, envelopes: Sequence[Envelope]) -> Entry:
    of = decision.registration
    return Entry(destination, of.entity_id, of.domain, len(envelopes), to_lines(envelopes))
