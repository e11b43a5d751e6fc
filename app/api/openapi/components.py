"""The schemas of all requests and answers, by name."""

from inspect import cleandoc

import msgspec

from app import answers
from app.api import schemas
from app.api.openapi.operations import REFERENCE, Json
from app.domain.events import EVENT_TYPES, Event
from app.domain.positions import MAX_NUMBER
from app.domain.registration import Registration
from app.domain.results import Result
from app.domain.workflows import Provenance, Workflow


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
        answers.BatchAnswer,
        answers.StreamSummary,
        answers.Health,
        answers.Ready,
        answers.Problem,
        answers.OrderProblem,
        answers.InterruptedProblem,
        Workflow,
        Provenance,
        schemas.WorkflowCommit,
        answers.WorkflowPage,
        answers.WatermarkList,
        answers.DeadLetterPage,
        answers.AuditPage,
        answers.StateProblem,
        answers.ActionProblem,
        answers.ChangesPage,
        answers.GoneProblem,
        Event,
    ]
    written, components = msgspec.json.schema_components(types, ref_template=REFERENCE, schema_hook=_anything)
    components["Event"] = {"title": "Event", "description": "An event, of one of these types.", **written[-1]}
    components["Position"] = _position(components["Position"])
    components["CloudEvent"] = _cloudevent()
    for component in components.values():  # Python 3.13 takes the indentation out of docstrings, earlier ones do not
        if "description" in component:
            component["description"] = cleandoc(component["description"])
    for name in ("Result", "OrderProblem"):  # there for triggers only, and never null
        events = components[name]["properties"]["events"]
        [components[name]["properties"]["events"]] = [one for one in events["anyOf"] if one != {"type": "null"}]
    return components


def _anything(type_: type) -> Json:
    """A capability holds any JSON."""
    if type_ is object:
        return {"description": "Any JSON."}
    raise NotImplementedError


def _position(position: Json) -> Json:
    """Either kind of position, but no mixture, as Position checks when it is made."""
    fields = {}
    for name, schema in position["properties"].items():
        [fields[name]] = [one for one in schema["anyOf"] if one != {"type": "null"}]
    kinds = [
        {
            "title": title,
            "type": "object",
            "properties": {name: fields[name] for name in (*names, "previous")},
            "required": names,
            "additionalProperties": False,
        }
        for title, names in (("Sequence", ["sequence"]), ("Offset", ["partition", "offset"]))
    ]
    return {"title": "Position", "description": position["description"], "oneOf": kinds}


def _cloudevent() -> Json:
    """A CloudEvent in the JSON format, with our extensions. Optional attributes may be null."""
    id_ = {"type": "string", "format": "uuid"}
    digits = {"type": "string", "pattern": "^0*[0-9]{1,19}$", "description": "In decimal digits."}
    number = {"anyOf": [digits, {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}]}
    text = {"type": "string", "minLength": 1}
    required: Json = {
        "specversion": {"const": "1.0"},
        "id": {**id_, "description": "The event id."},
        "source": text,
        "type": {"enum": list(EVENT_TYPES)},
        "subject": {**id_, "description": "The entity id."},
        "time": {"type": "string", "format": "date-time", "description": "When it happened, with a time zone."},
        "sequence": {**number, "description": "The position in the source."},
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
