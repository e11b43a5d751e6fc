"""The schemas of all requests and answers, by name."""

import msgspec

from app.api import schemas
from app.api.openapi.dialect import not_null, plain, say_default
from app.api.openapi.fields import describe
from app.api.openapi.operations import REFERENCE, Json
from app.domain.events import EVENT_TYPES, Event
from app.domain.positions import MAX_NUMBER
from app.domain.registration import Registration
from app.domain.results import Result
from app.domain.states import RegistrationState
from app.domain.workflows import Provenance, Workflow
from app.wire import answers, overview, system
from app.wire import problems as problem_types
from app.wire.events import MAX_EVENTS

# Fields of answers that are left out where they have no value, so they are never null.
LEFT_OUT = (("Result", "events"), ("OrderProblem", "events"), ("Problem", "errors"))

TOMBSTONE = ("forgotten_at", "forgotten_permanently")  # fields of a row that no answer has


def component_schemas() -> dict[str, Json]:
    """The schemas of all requests and answers, by name."""
    types = [
        Registration,
        Result,
        answers.EntityState,
        schemas.Lookup,
        answers.LookupAnswer,
        answers.EntityPage,
        answers.StateCounts,
        answers.OverduePage,
        overview.Overview,
        overview.DomainPage,
        answers.BatchAnswer,
        answers.StreamSummary,
        answers.Health,
        answers.Ready,
        problem_types.Problem,
        problem_types.OrderProblem,
        problem_types.InterruptedProblem,
        Workflow,
        Provenance,
        schemas.WorkflowCommit,
        answers.WorkflowPage,
        answers.WatermarkList,
        answers.SnapshotProgress,
        answers.DeadLetterPage,
        answers.HeldPage,
        answers.QueueAnswer,
        answers.LetterRun,
        problem_types.HeldProblem,
        answers.AuditPage,
        system.SystemState,
        system.KeyList,
        problem_types.StateProblem,
        problem_types.ActionProblem,
        answers.ChangesPage,
        answers.EntityHistory,
        answers.EventRecord,
        problem_types.GoneProblem,
        problem_types.LateProblem,
        problem_types.TrackProblem,
        problem_types.ForgottenProblem,
        problem_types.HistoryGoneProblem,
        schemas.Forget,
        answers.ForgetAnswer,
        schemas.Deregister,
        answers.DeregisterAnswer,
        Event,
    ]
    written, components = msgspec.json.schema_components(types, ref_template=REFERENCE, schema_hook=_anything)
    for name, field in LEFT_OUT:
        properties = components[name]["properties"]
        properties[field] = not_null(properties[field])
    for name in ("Registration", "OverdueRegistration", "RowItem"):
        for field in TOMBSTONE:
            del components[name]["properties"][field]
    components["Position"] = _position(components["Position"])
    components["RegistrationState"]["description"] = "The state of a node's registration."
    for name in ("StateCounts", "Overview"):
        components[name]["properties"]["counts"] = _reference("Counts")
    components["Counts"] = _counts()
    interrupted = components["InterruptedProblem"]  # without a stream, it is a Problem
    interrupted["required"].remove("committed_lines")
    interrupted["properties"]["errors"] = components["Problem"]["properties"]["errors"]
    components["WorkflowCommit"]["properties"]["provenance"] = _reference("Provenance")
    components["Provenance"]["additionalProperties"] = True
    components["CloudEvent"] = _cloudevent()
    components["FeedItem"] = _item(components["ChangesPage"]["properties"]["items"])
    components |= _events(written[-1])
    plainly = {name: plain(schema) for name, schema in components.items()}
    for name, schema in plainly.items():
        describe(name, schema)
        for field in schema.get("properties", {}).values():
            say_default(field)
    return plainly


def _anything(type_: type) -> Json:
    """A capability holds any JSON."""
    if type_ is object:
        return {"description": "Any JSON."}
    raise NotImplementedError


def _reference(name: str) -> Json:
    return {"$ref": REFERENCE.format(name=name)}


def _events(event: Json) -> dict[str, Json]:
    """An event, and all that `POST /v1/events` reads and answers in JSON: a name for each choice.

    The type of an event decides which one it is, so no event has two of the forms.
    """
    return {
        "Event": {
            "title": "Event",
            "description": "An event, of one of these types.",
            "oneOf": event["anyOf"],
            "discriminator": event["discriminator"],
        },
        "EventArray": {
            "title": "EventArray",
            "description": "Events that are applied in one transaction.",
            "type": "array",
            "items": _reference("Event"),
            "maxItems": MAX_EVENTS,
        },
        "EventOrEvents": {
            "title": "EventOrEvents",
            "description": "One event, or an array of events.",
            "oneOf": [_reference("Event"), _reference("EventArray")],
        },
        "ForgottenOrGone": {
            "title": "ForgottenOrGone",
            "description": "The entity was forgotten, or the change log does not go back to `as_of`.",
            "oneOf": [_reference("ForgottenProblem"), _reference("HistoryGoneProblem")],
        },
        "OrderOrHeldProblem": {
            "title": "OrderOrHeldProblem",
            "description": "An event that is early or in conflict, or whose entity is held.",
            "oneOf": [_reference("OrderProblem"), _reference("HeldProblem")],
        },
        "ResultOrBatch": {
            "title": "ResultOrBatch",
            "description": "The outcome of one event, or those of an array.",
            "oneOf": [_reference("Result"), _reference("BatchAnswer")],
        },
    }


def _item(items: Json) -> Json:
    """An item of the feed under a name; `items` is the schema of the array, which refers to it afterwards."""
    choice = items["items"]
    items["items"] = _reference("FeedItem")
    return {
        "title": "FeedItem",
        "description": "A change, or a row of a snapshot.",
        "oneOf": choice["anyOf"],
        "discriminator": choice["discriminator"],
    }


def _counts() -> Json:
    """A field for each state: the answer has them all."""
    return {
        "title": "Counts",
        "description": "How many entities are in each state.",
        "type": "object",
        "properties": {state: {"type": "integer", "minimum": 0} for state in RegistrationState},
        "required": list(RegistrationState),
    }


def _position(position: Json) -> Json:
    """Either kind of position, but no mixture, as Position checks when it is made.

    It is one object, and no choice between two: generators make a type of it that people can fill in.
    """
    fields = {name: not_null(schema) for name, schema in position["properties"].items()}
    either: list[Json] = [{"required": ["partition"]}, {"required": ["offset"]}]
    return {
        "title": "Position",
        "description": "A place in a source: `sequence`, which counts one entity's events, or `partition` and "
        "`offset` of a log. `previous` belongs to the event, and takes no part in comparisons.",
        "type": "object",
        "properties": fields,
        "additionalProperties": False,
        "if": {"required": ["sequence"]},
        "then": {"not": {"anyOf": either}},
        "else": {"required": ["partition", "offset"]},
    }


def _cloudevent() -> Json:
    """A CloudEvent in the JSON format, with our extensions. Optional attributes may be null."""
    id_ = {"type": "string", "format": "uuid"}
    number: Json = {
        "type": ["string", "integer"],
        "pattern": "^0*[0-9]{1,19}$",  # of a string
        "minimum": 0,  # of an integer
        "maximum": MAX_NUMBER,
    }
    text = {"type": "string", "minLength": 1}
    required: Json = {
        "specversion": {"type": "string", "const": "1.0"},
        "id": {**id_, "description": "The event id."},
        "source": text,
        "type": {"enum": list(EVENT_TYPES)},
        "subject": {**id_, "description": "The entity id."},
        "time": {"type": "string", "format": "date-time", "description": "When it happened, with a time zone."},
        "sequence": {**number, "description": "The position in the source, in decimal digits."},
    }
    optional: Json = {
        "previous": {**number, "description": "The sequence of the entity's event before this one."},
        "domain": {**text, "maxLength": 128},
        "correlationid": id_,
        "partitionkey": {**text, "description": "Checked, but not stored."},
        "datacontenttype": {"type": "string", "description": "A JSON media type."},
        "data": {"type": "object", "description": "The data of an Event of this type."},
        "data_base64": {"type": "string", "contentEncoding": "base64", "description": "The data, as JSON in base64."},
    }
    return {
        "title": "CloudEvent",
        "description": "An event as a CloudEvent 1.0. Unknown attributes are ignored.",
        "type": "object",
        "properties": required | {name: {"anyOf": [one, {"type": "null"}]} for name, one in optional.items()},
        "required": list(required),
    }
