"""The OpenAPI document: written from the types that answers are encoded from, with examples from real answers."""

import json
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any, TypedDict
from uuid import UUID

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from app.api import schemas
from app.domain.events import DEFAULT_DOMAIN, EVENT_TYPES, Event
from app.domain.folding import Result
from app.domain.positions import MAX_NUMBER
from app.domain.registration import Registration
from app.domain.workflows import Provenance, Workflow
from app.wire.cloudevents import BATCH, STRUCTURED
from app.wire.events import MAX_EVENTS

Json = dict[str, Any]  # a piece of the document
REFERENCE = "#/components/schemas/{name}"
JSON = "application/json"
NDJSON = "application/x-ndjson"
PROBLEM = "application/problem+json"
TEXT = "text/plain"

WHY: dict[int, str] = {
    400: "The body is not JSON (the detail says where it breaks), or the cursor is bad.",
    404: "There is no such entity, workflow, or dead letter.",
    409: "The event is early, or in conflict with its entity's row.",
    412: "The workflow is not at the version that the headers ask for: the body has its row.",
    413: "The body is too large.",
    415: "The content type is none that this call reads.",
    422: "The input is readable and wrong: `errors` says what and where.",
    428: "Neither `If-Match` nor `If-None-Match` is there.",
    503: "The database does not answer, or its schema is not the expected one: come again after `Retry-After`.",
}

DESCRIPTION = """
One row per node that says where its registration stands: a projection of an event log.

Events come in through `POST /v1/events`, in any order and any number of times; each has one of six outcomes. What the
row is now, how many rows are in each state, and which deadlines have passed is answered by the reads. Orchestrators
keep their own state beside it, as workflows that are changed by compare-and-swap. Errors are
problem details (RFC 9457), and every answer carries an `X-Correlation-ID`: yours, when you send one.
"""

TAGS = [
    {"name": "events", "description": "The one way in."},
    {"name": "entities", "description": "Where nodes stand."},
    {"name": "counts", "description": "How many are where."},
    {"name": "overdue", "description": "Deadlines that have passed."},
    {"name": "workflows", "description": "State of orchestrators, changed by compare-and-swap."},
    {"name": "kafka", "description": "What comes in from Kafka: how far it is in, and what could not be taken in."},
    {"name": "health", "description": "For those who run the service."},
]

CORRELATION_ID = {
    "name": "X-Correlation-ID",
    "in": "header",
    "required": False,
    "description": "Given back and logged, and kept with events that have no `correlation_id` of their own.",
    "schema": {"type": "string", "format": "uuid"},
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "ETags that the client has already: where the row has one of them, the answer is 304.",
    "schema": {"type": "string"},
    "example": '"5"',
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the row that the new state builds on. A list allows any of them, `*` any row.",
    "schema": {"type": "string"},
    "example": '"1"',
}
IF_NOTHING = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "`*` for a workflow that has no row yet. This or `If-Match` is required.",
    "schema": {"type": "string"},
    "example": "*",
}


class Operation(TypedDict):
    """What a route says of itself beyond its name, for FastAPI's decorators."""

    response_class: type[Response]
    responses: dict[int | str, Json]
    openapi_extra: Json | None


# --- What routes say of themselves ---------------------------------------------------------------------------------


def operation(
    answer: type[msgspec.Struct],
    *,
    errors: tuple[int, ...],
    body: type[msgspec.Struct] | None = None,
    etag: bool = False,
    link: bool = False,
    text: bool = False,
    stream: type[msgspec.Struct] | None = None,
) -> Operation:
    """A call that answers `answer`, or one of `errors`."""
    content = {JSON: _schema(answer.__name__)}
    if text:
        content[TEXT] = _text("The state alone, without quotes.")
    if stream is not None:
        content[NDJSON] = _text(f"A {stream.__name__} a line.")
    responses: dict[int | str, Json] = {
        200: {"description": _sentence(answer), "content": content, "headers": _headers(etag=etag, link=link)}
    }
    if etag:
        responses[304] = {
            "description": "The row still has the version that `If-None-Match` names.",
            "headers": _headers(etag=True),
        }
    responses |= {status: _error(status) for status in errors}
    extra = None
    if body is not None:
        extra = {"requestBody": {"required": True, "content": {JSON: _schema(body.__name__)}}}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def events_operation() -> Operation:
    """`POST /v1/events`, which reads events of our own form and CloudEvents: one, many, or a stream."""
    event = {"$ref": REFERENCE.format(name="Event")}
    asked = {
        JSON: {"schema": {"oneOf": [event, {"type": "array", "items": event, "maxItems": MAX_EVENTS}]}},
        NDJSON: _text("An event a line."),
        STRUCTURED: _schema("CloudEvent"),
        BATCH: {"schema": {"type": "array", "items": _schema("CloudEvent")["schema"], "maxItems": MAX_EVENTS}},
    }
    answered = {
        JSON: _schema("Result", "BatchAnswer"),
        NDJSON: _text(
            "A line for each event that was not applied, with its `line` number from 1; at the end one with the "
            "`summary`."
        ),
    }
    responses: dict[int | str, Json] = {
        200: {"description": "What became of the events.", "content": answered, "headers": _headers()},
        400: _error(400),
        409: _error(409, "OrderProblem"),
        413: _error(413),
        415: _error(415),
        422: _error(422),
        503: _error(503, "Problem", "InterruptedProblem"),
    }
    extra: Json = {"requestBody": {"required": True, "content": asked}, "parameters": _attributes()}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def commit_operation() -> Operation:
    """`PUT /v1/workflows/{workflow_key}`, which creates and changes."""
    replayed = {
        "description": "`true` when the action was applied before, and this is the answer of then.",
        "schema": {"type": "string", "const": "true"},
    }
    headers = {**_headers(etag=True), "Idempotency-Replayed": replayed}
    responses: dict[int | str, Json] = {
        status: {"description": description, "content": {JSON: _schema("Workflow")}, "headers": headers}
        for status, description in ((200, "The row, one version on."), (201, "The row, new."))
    }
    responses |= {status: _error(status) for status in (400, 413, 415, 422, 428, 503)}
    conflict = "The action was applied before, and with another state."
    responses[409] = {**_error(409, "ActionProblem"), "description": conflict, "headers": _headers()}
    responses[412] = {**_error(412, "StateProblem"), "headers": _headers(etag=True)}
    extra = {"requestBody": {"required": True, "content": {JSON: _schema("WorkflowCommit")}}}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def retry_operation() -> Operation:
    """`POST /v1/dead-letters/{id}/retry`, which answers as an event that is posted does."""
    ok = {"description": "What became of the event.", "content": {JSON: _schema("Result")}, "headers": _headers()}
    out = {"description": "It was to go out, and waits in the outbox again.", "headers": _headers()}
    responses: dict[int | str, Json] = {200: ok, 202: out, 409: _error(409, "OrderProblem")}
    responses |= {status: _error(status) for status in (400, 404, 422, 503)}
    responses[400]["description"] = "The message is not JSON: the detail says where it breaks."
    return {"response_class": Response, "responses": responses, "openapi_extra": None}


def removal_operation() -> Operation:
    """`DELETE /v1/dead-letters/{id}`, which answers nothing."""
    responses: dict[int | str, Json] = {204: {"description": "It is removed.", "headers": _headers()}}
    responses |= {status: _error(status) for status in (404, 422, 503)}
    return {"response_class": Response, "responses": responses, "openapi_extra": None}


def metrics_operation() -> Operation:
    """`GET /metrics`, which answers text."""
    ok = {"description": "Prometheus' text format.", "content": {TEXT: _text("Metrics.")}, "headers": _headers()}
    return {"response_class": Response, "responses": {200: ok, 422: _error(422)}, "openapi_extra": None}


def _schema(*names: str) -> Json:
    references = [{"$ref": REFERENCE.format(name=name)} for name in names]
    return {"schema": references[0] if len(references) == 1 else {"anyOf": references}}


def _text(description: str) -> Json:
    return {"schema": {"type": "string", "description": description}}


def _sentence(type_: type[msgspec.Struct]) -> str:
    return (type_.__doc__ or "").strip()


def _headers(*, etag: bool = False, link: bool = False) -> Json:
    headers: Json = {
        "X-Correlation-ID": {
            "description": "The client's, or one that was made.",
            "schema": {"type": "string", "format": "uuid"},
        }
    }
    if etag:
        headers["ETag"] = {"description": "The row's version, quoted.", "schema": {"type": "string"}}
    if link:
        headers["Link"] = {"description": "The next page, where there is one.", "schema": {"type": "string"}}
    return headers


def _error(status: int, *names: str) -> Json:
    headers = _headers()
    if status in {409, 503}:
        when = " Only with an event that is early." if status == 409 else ""
        headers["Retry-After"] = {
            "description": f"Seconds to wait.{when}",
            "schema": {"type": "integer", "minimum": 1},
        }
    return {
        "description": WHY.get(status, HTTPStatus(status).phrase),
        "content": {PROBLEM: _schema(*(names or ("Problem",)))},
        "headers": headers,
    }


# --- The document --------------------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Make `app` write its document this way, when it is first asked for it."""

    def document() -> Json:
        if app.openapi_schema is None:
            written = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                tags=TAGS,
                license_info={"name": "MIT", "identifier": "MIT"},
            )
            written.setdefault("components", {}).setdefault("schemas", {}).update(_components())
            for operation in _operations(written):
                _describe_parameters(operation)
                _illustrate(operation)
            app.openapi_schema = written
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _operations(document: Json) -> Iterator[Json]:
    for item in document["paths"].values():
        yield from item.values()


def _describe_parameters(operation: Json) -> None:
    """Say what a request may carry beside its body. A parameter is left out, never null."""
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        schema = parameter["schema"]
        if "anyOf" in schema:
            [schema] = [one for one in schema["anyOf"] if one != {"type": "null"}]
        schema.pop("title", None)
        told = schema.pop("description", None)
        parameter["schema"] = schema
        parameter.setdefault("description", told or "The entity's id.")
    if "304" in operation["responses"]:
        parameters.append(IF_NONE_MATCH)
    if "428" in operation["responses"]:
        parameters += [IF_MATCH, IF_NOTHING]
    parameters.append(CORRELATION_ID)


def _components() -> dict[str, Json]:
    """The schemas of everything that is asked and answered, by name."""
    types = [
        Registration,
        Result,
        schemas.EntityState,
        schemas.Lookup,
        schemas.LookupAnswer,
        schemas.EntityPage,
        schemas.StateCounts,
        schemas.OverduePage,
        schemas.Summary,
        schemas.StreamSummary,
        schemas.Health,
        schemas.Ready,
        schemas.Problem,
        schemas.OrderProblem,
        schemas.InterruptedProblem,
        Workflow,
        Provenance,
        schemas.WorkflowCommit,
        schemas.WorkflowPage,
        schemas.WatermarkList,
        schemas.DeadLetterPage,
        schemas.StateProblem,
        schemas.ActionProblem,
        Event,
    ]
    written, components = msgspec.json.schema_components(types, ref_template=REFERENCE, schema_hook=_anything)
    components["Event"] = {"title": "Event", "description": "One of the event types.", **written[-1]}
    components["Position"] = _position(components["Position"])
    components["CloudEvent"] = _cloudevent()
    components["BatchAnswer"] = {
        "title": "BatchAnswer",
        "description": "What became of the events of an array, in the order sent.",
        "type": "object",
        "properties": {
            "summary": {"$ref": REFERENCE.format(name="Summary")},
            "results": {"type": "array", "items": {"$ref": REFERENCE.format(name="Result")}},
        },
        "required": ["summary", "results"],
    }
    for name in ("Summary", "StreamSummary"):  # their defaults are for this code: answers have all of them
        components[name]["required"] = list(components[name]["properties"])
    return components


def _anything(type_: type) -> Json:
    """What a capability may hold: any JSON."""
    if type_ is object:
        return {"description": "Any JSON."}
    raise NotImplementedError


def _position(position: Json) -> Json:
    """Either kind of position, and no mixture: what Position checks when it is made."""
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
    """A CloudEvent in the JSON format, with our extensions. What is optional may be null."""
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
        "time": {"type": "string", "format": "date-time", "description": "When it happened, with a zone."},
        "sequence": {**number, "description": "The position in the source."},
    }
    optional: Json = {
        "previous": {**number, "description": "The sequence of the event before this one."},
        "domain": {**text, "maxLength": 128},
        "correlationid": id_,
        "partitionkey": {**text, "description": "Checked, and not kept."},
        "datacontenttype": {"type": "string", "description": "That of JSON."},
        "data": {"type": "object", "description": "As in an Event of this type."},
        "data_base64": {"type": "string", "contentEncoding": "base64", "description": "The data, as JSON in base64."},
    }
    return {
        "title": "CloudEvent",
        "description": "An event as a CloudEvent 1.0. Attributes that are not known are ignored.",
        "type": "object",
        "properties": required | {name: {"anyOf": [one, {"type": "null"}]} for name, one in optional.items()},
        "required": list(required),
    }


def _attributes() -> list[Json]:
    """The headers of a CloudEvent in binary mode: none of them, or all that a CloudEvent must have."""
    told = {
        "specversion": ("Of a CloudEvent in binary mode, whose body is its `data` alone: `1.0`.", "1.0"),
        "id": ("The event id, a UUID.", "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1d02"),
        "source": ("Where it comes from. Checked, and not kept.", "/racks/12"),
        "type": ("The event type.", "registration.accepted"),
        "subject": ("The entity id, a UUID.", "2f4d6b8a-7c53-4c58-8a3c-1f0e2d3c4b5a"),
        "time": ("When it happened, with a zone.", "2026-01-01T12:00:02Z"),
        "sequence": ("The position in the source, in decimal digits.", "0002"),
        "previous": ("The sequence of the event before this one; may be left out.", "0001"),
        "domain": ("The domain; `registration` where it is left out.", DEFAULT_DOMAIN),
        "correlationid": ("A UUID to be kept with the event; may be left out.", str(UUID(int=1))),
        "partitionkey": ("Checked, and not kept; may be left out.", "2f4d6b8a-7c53-4c58-8a3c-1f0e2d3c4b5a"),
    }
    return [
        {
            "name": f"ce-{name}",
            "in": "header",
            "required": False,
            "description": description,
            "schema": {"type": "string"},
            "example": example,
        }
        for name, (description, example) in told.items()
    ]


# --- Examples ------------------------------------------------------------------------------------------------------


@cache
def examples() -> dict[str, Json]:
    """Requests, and what a real service answered to them.

    `requests` has an event of each type, an array, a CloudEvent, and a lookup; `answers` are by the name of their
    schema, or by the operation's id where that answers otherwise, or by the id and `with` what is more in them;
    `problems` by status, or by operation's id and status.
    `tests/api/test_examples.py` asks for all of them again and compares.
    """
    text = files("app.api").joinpath("examples.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def _illustrate(operation: Json) -> None:
    """Put the examples into an operation."""
    id_ = operation["operationId"]
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        _show(content, _requests(content, media))
    for status, response in operation["responses"].items():
        for media, content in response.get("content", {}).items():
            _show(content, _problems(id_, status) if media == PROBLEM else _answers(id_, content, media))


def _show(content: Json, shown: Json) -> None:
    content["examples"] = {name: {"summary": name, "value": value} for name, value in shown.items()}


def _requests(content: Json, media: str) -> Json:
    requests = examples()["requests"]
    if media == NDJSON:
        return {"lines": "".join(json.dumps(event) + "\n" for event in requests["array"])}
    if media == BATCH:
        return {"batch": [requests["CloudEvent"]]}
    if "oneOf" in content["schema"]:
        return {name: requests[name] for name in (*EVENT_TYPES, "array")}
    return _by_schema(content, requests)


def _answers(id_: str, content: Json, media: str) -> Json:
    answers = examples()["answers"]
    own = f"{id_} {media}" if media != JSON else id_
    if own in answers:
        return {own: answers[own]}
    more = {name: answer for name, answer in answers.items() if name.startswith(f"{id_} with ")}
    return {**_by_schema(content, answers), **more}


def _by_schema(content: Json, known: Json) -> Json:
    references = content["schema"].get("anyOf", [content["schema"]])
    names = [reference["$ref"].rpartition("/")[2] for reference in references]
    return {name: known[name] for name in names}


def _problems(id_: str, status: str) -> Json:
    problems = examples()["problems"]
    own = {name: problem for name, problem in problems.items() if name.split(" ")[:2] == [id_, status]}
    return own if f"{id_} {status}" in own else {status: problems[status], **own}
