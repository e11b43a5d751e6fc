"""The blocks about states, events and triggers.

Nothing is written down here that the domain says: evolve(), decide() and expire() are asked about every type in every
state, and the answers become the tables.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import asdict

from app.domain.decider import Deadline, Decision, decide, expire
from app.domain.events import (
    FACT_CLASSES,
    TRIGGER_CLASSES,
    Event,
    Fact,
    Forgotten,
    Heartbeat,
    Recorded,
    RecordedData,
    Refreshed,
    Trigger,
)
from app.domain.positions import Position
from app.domain.registration import Ignored, Registration, Timing, evolve
from app.domain.states import RegistrationState
from docs.reference.markdown import Json, code, default_of, in_words, paragraph, table

TIMING = Timing()
DURATIONS = {
    name: length
    for name, length in ((name, getattr(TIMING, name)) for name in TIMING.__struct_fields__)
    if length is not None
}
BEFORE = datetime(2026, 1, 1, tzinfo=UTC)  # every time that the row has
NOW = BEFORE + timedelta(days=1)  # when the event happens
GIVEN = BEFORE + timedelta(days=2)  # every time that the event gives
ID = UUID(int=1)
# Every event changes these in the same way; the page says so once.
RECORDED = {
    "last_applied_event_id",
    "last_applied_partition",
    "last_applied_offset",
    "last_applied_sequence",
    "correlation_id",
    "updated_at",
    "version",
}
SAMPLES: dict[str, object] = {
    "node_type": "given",
    "node_version": "given",
    "capabilities": {"given": True},
    "current_state": "active",
}
NO_ROW = "no row"


def row(state: RegistrationState) -> Registration:
    """A row in this state that has everything that a row may have."""
    return Registration(
        entity_id=ID,
        domain="registration",
        current_state=state,
        node_type="before",
        node_version="before",
        capabilities={"before": True},
        ack_deadline=BEFORE,
        liveness_deadline=BEFORE,
        last_heartbeat_at=BEFORE,
        ack_timeout_emitted_at=BEFORE,
        liveness_timeout_emitted_at=BEFORE,
        last_applied_event_id=ID,
        last_applied_partition=None,
        last_applied_offset=None,
        last_applied_sequence=1,
        registered_at=BEFORE,
        updated_at=BEFORE,
        correlation_id=None,
        version=1,
    )


ROWS: dict[str, Registration | None] = {NO_ROW: None} | {str(state): row(state) for state in RegistrationState}


def type_of(cls: type[Event]) -> str:
    """The name of an event type."""
    return str(cls.__struct_config__.tag)


def made(cls: type[Any], *optional: str) -> Any:
    """An event of this type with the required fields of its data, and with these optional ones."""
    data = msgspec.structs.fields(_data_class(cls))
    given = {field.name: SAMPLES.get(field.name, GIVEN) for field in data if field.required or field.name in optional}
    event = {"type": type_of(cls), "event_id": ID, "entity_id": ID, "position": {"sequence": 2}, "occurred_at": NOW}
    return msgspec.convert(event | {"data": given}, cls)


def _data_class(cls: type[Event]) -> type[msgspec.Struct]:
    found: type[msgspec.Struct] = next(field.type for field in msgspec.structs.fields(cls) if field.name == "data")
    return found


# --- States --------------------------------------------------------------------------------------------------------


def _ways(cls: type[Fact]) -> Iterator[tuple[str, str]]:
    """From which state, or from no row, an event of this type leads to which."""
    for before, registration in ROWS.items():
        after = evolve(registration, made(cls), TIMING)
        if isinstance(after, Registration):
            yield before, str(after.current_state)


def diagram() -> str:
    """The arrows that facts allow, but for those that leave the state alone, and `registration.recorded`."""
    lines = [
        f"    {'[*]' if before == NO_ROW else before} --> {after}: {type_of(cls)}"
        for cls in FACT_CLASSES
        if cls not in {Recorded, Forgotten}
        for before, after in _ways(cls)
        if before != after
    ]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def states() -> str:
    """What holds in each state, and which events lead into it and out of it."""
    arrows = [
        (before, after, type_of(cls))
        for cls in FACT_CLASSES
        if cls not in {Recorded, Heartbeat, Refreshed, Forgotten}
        for before, after in _ways(cls)
    ]
    lines = []
    for state in RegistrationState:
        marks = {
            "terminal": state.is_terminal(),
            "active": state.is_active(),
            "`ack_deadline` counts": state.requires_ack(),
            "`liveness_deadline` counts": state.requires_liveness(),
            "may register again": state.can_transition_to(RegistrationState.PENDING_REGISTRATION)
            or RegistrationState.PENDING_REGISTRATION.value in {to for of, to, _ in arrows if of == state},
        }
        reached = dict.fromkeys(type_ for _, to, type_ in arrows if to == state)
        left = dict.fromkeys(type_ for of, _, type_ in arrows if of == state)
        true = ", ".join(mark for mark, holds in marks.items() if holds)
        lines.append([f"`{state}`", true, code(reached), code(left)])
    return table(["state", "what holds in it", "reached by", "left by"], lines)


# --- Events --------------------------------------------------------------------------------------------------------


def envelope() -> str:
    """The fields of every event."""
    _, components = msgspec.json.schema_components([Recorded, Position], ref_template="#/{name}", schema_hook=_any)
    fields = components["Recorded"]["properties"]
    required = set(components["Recorded"]["required"]) - {"data"}
    lines = []
    for name, schema in fields.items():
        if name == "type":
            kind = "one of the types on this page"
        elif name == "position":
            kind = "see [positions](#positions)"
        else:
            kind = "object, see the type" if name == "data" else in_words(schema)
        lines.append([f"`{name}`", kind, "required" if name in required else default_of(schema) or "by the type"])
    return table(["field", "value", "default"], lines)


def facts() -> str:
    """A section for each fact."""
    return "".join(f"### {type_of(cls)}\n\n{_fact(cls)}\n" for cls in FACT_CLASSES)


def _fact(cls: type[Fact]) -> str:
    ways = list(_ways(cls))
    sources = [before for before, _ in ways]
    targets = dict.fromkeys(after for _, after in ways)
    if cls is Recorded:
        lead = "any state, or no row → the given `current_state`"
    elif cls is Forgotten:
        lead = "any state, or no row → a tombstone"
    elif cls is Heartbeat:
        others = [name for name in ROWS if name not in sources and name != NO_ROW]
        lead = f"any state but {code(others)} → the state stays"
    elif cls is Refreshed:
        lead = f"{_named(sources)} → the state stays"
    else:
        lead = f"{_named(sources)} → {code(targets)}"
    parts = [f"{paragraph(cls.__doc__)}\n\n**From → to:** {lead}.\n"]
    if fields := _fields(cls):
        parts.append(f"\n**`data`:**\n\n{fields}")
    else:
        parts.append("\n**`data`:** none.\n")
    if cls is Forgotten:
        parts.append("\n**Sets** `forgotten_at` to `occurred_at`, and empties the columns that describe the node.\n")
    elif cls is Recorded:
        parts.append("\n**Sets** every column to the given value, or to the default of the field.\n")
    else:
        parts.append(f"\n{_sets(cls, sources)}")
    return "".join(parts)


def _named(sources: list[str]) -> str:
    return ", ".join(NO_ROW if name == NO_ROW else f"`{name}`" for name in sources)


def _fields(cls: type[Event]) -> str:
    """The fields of a type's data, or nothing where there are none."""
    data = _data_class(cls)
    if not data.__struct_fields__:
        return ""
    _, components = msgspec.json.schema_components([data], ref_template="states.md#{name}", schema_hook=_any)
    schema = components[data.__name__]
    required = schema.get("required", [])
    lines = []
    for name, value in schema["properties"].items():
        kind = "one of the eight [states](states.md)" if "$ref" in value else in_words(_without_null(value))
        lines.append([f"`{name}`", kind, "required" if name in required else default_of(value)])
    return table(["field", "value", "default"], lines)


def _without_null(schema: Json) -> Json:
    if "anyOf" in schema:
        [schema] = [one for one in schema["anyOf"] if one != {"type": "null"}]
    return schema


def _any(type_: type) -> Json:
    if type_ is object:
        return {"description": "Any JSON."}
    raise NotImplementedError(type_)


def _sets(cls: type[Fact], sources: list[str]) -> str:
    """Each column that an event of this type writes beside the state, and the value."""
    before = ROWS[next(name for name in sources if name != NO_ROW)]
    names = _data_class(cls).__struct_fields__
    optional = [field.name for field in msgspec.structs.fields(_data_class(cls)) if not field.required]
    plain = _changed(before, made(cls))
    alone = {name: _changed(before, made(cls, name)) for name in optional}
    columns = [
        name
        for name in RecordedData.__struct_fields__
        if name != "current_state" and any(name in found for found in (plain, *alone.values()))
    ]
    lines = []
    for column in columns:
        required = column in names and column not in optional
        phrases = ["as given"] if column in names else []
        for name, found in alone.items():
            if name != column and column in found and not required:
                phrases.append(found[column] if column in plain else f"{found[column]} when `{name}` is given")
        if column in plain and not required:
            phrases.append(plain[column])
        elif column in optional:
            phrases.append("unchanged")
        lines.append([f"`{column}`", ", else ".join(dict.fromkeys(phrases))])
    if sources[0] == NO_ROW:
        lines.append(["`registered_at`", "`occurred_at`, the first time only"])
    if not lines:
        return "**Sets** nothing but the state.\n"
    return f"**Sets:**\n\n{table(['column', 'value'], lines)}"


def _changed(before: Registration | None, event: Fact) -> dict[str, str]:
    """The columns that this event changes, and each new value in words."""
    after = evolve(before, event, TIMING)
    assert before is not None and isinstance(after, Registration)  # noqa: PT018, S101 - asked only where it may come
    old = asdict(before)
    return {
        name: _value(value, event)
        for name, value in asdict(after).items()
        if value != old[name] and name not in RECORDED
    }


def _value(value: object, event: Fact) -> str:
    if value is None:
        return "cleared"
    if not isinstance(value, datetime):
        return f"`{value}`"
    bases = {"heartbeat_at": getattr(event.data, "heartbeat_at", None), "occurred_at": event.occurred_at}
    for name, base in bases.items():
        if base is not None:
            lengths = {base: f"`{name}`"}
            for each, length in DURATIONS.items():
                lengths[base + length] = f"`{name}` + `PQS_{each.upper()}`"
            if value in lengths:
                return lengths[value]
    return "as given"


# --- Triggers and deadlines ----------------------------------------------------------------------------------------


def triggers() -> str:
    """A section for each trigger: what follows from it, by state."""
    return "".join(f"### {type_of(cls)}\n\n{_trigger(cls)}\n" for cls in TRIGGER_CLASSES)


def _trigger(cls: type[Trigger]) -> str:
    if cls is Forgotten:
        return (
            "A forget is a fact as well, and is [described above](#registrationforgotten). It is the event that "
            "follows, and goes out on the bus with the intents `postgres.upsert_registration` and "
            "`consul.deregister`. When a tombstone is forgotten again, only the row changes.\n"
        )
    if cls is Heartbeat:
        return (
            "A heartbeat is a fact as well, and is [described above](#nodeheartbeat). No event follows from it: it "
            "changes only the row (intent `postgres.update_registration`).\n"
        )
    found: dict[tuple[str, str, str], list[str]] = {}
    for before, registration in ROWS.items():
        found.setdefault(_followed(decide(registration, made(cls), TIMING)), []).append(before)
    lines = [[_named(sources), *said] for said, sources in found.items()]
    fields = _fields(cls)
    data = f"**`data`:**\n\n{fields}" if fields else "**`data`:** none.\n"
    head = ["state before", "events that follow", "intents", "reason, when ignored"]
    return f"{paragraph(cls.__doc__)}\n\n{data}\n{table(head, lines)}"


def _followed(decision: Decision | Ignored) -> tuple[str, str, str]:
    if isinstance(decision, Ignored):
        return "none: `ignored`", "", decision.reason.partition("; the state is")[0]
    return (
        code(event.type for event in decision.events),
        code(intent.name for intent in decision.intents),
        "",
    )


def deadlines() -> str:
    """What follows from a passed deadline, by the deadline's kind."""
    lines = []
    for kind in Deadline:
        sources, said = [], ("", "", "")
        for state in RegistrationState:
            cleared = msgspec.structs.replace(
                row(state), ack_timeout_emitted_at=None, liveness_timeout_emitted_at=None
            )
            decision = expire(cleared, kind, NOW)
            if isinstance(decision, Decision):
                sources.append(str(state))
                said = _followed(decision)
        lines.append([f"`{kind}_deadline`", code(sources), *said[:2]])
    return table(["deadline", "states in which it counts", "event that follows", "intents"], lines)
