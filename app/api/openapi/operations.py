"""The operations of the OpenAPI document: the answers, errors and bodies that each route declares."""

from http import HTTPStatus
from typing import Any, TypedDict

import msgspec
from fastapi.responses import Response

from app.api.bodies import JSON, NDJSON, TEXT
from app.api.problems import MEDIA_TYPE
from app.domain.events import DEFAULT_DOMAIN
from app.wire.cloudevents import BATCH, STRUCTURED

Json = dict[str, Any]  # a piece of the document
REFERENCE = "#/components/schemas/{name}"


GONE = 410
READ_FAILED = "`If-Match` names other versions than the row's."


PAGE_TAG = "Weak: pages with the same rows at the same versions have the same, whatever their `as_of`."
ANSWER_TAG = "Weak: the same numbers have the same, whenever they were read."
PREFER: Json = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`wait=30`: wait up to so many seconds, 60 at most, for the conditions of the call (RFC 7240).",
    "schema": {"type": "string"},
}
WAITED: Json = {
    "Preference-Applied": {"description": "The wait of `Prefer` that was applied.", "schema": {"type": "string"}},
    "PQS-Late": {
        "description": "`true`: the conditions do not hold; without `late=stale` the answer would be 504.",
        "schema": {"type": "string", "const": "true"},
    },
}
REACHED: Json = {
    "PQS-Reached": {
        "description": "The version in which a state of `until` was reached.",
        "schema": {"type": "integer", "format": "int64", "minimum": 1},
    }
}


class Operation(TypedDict):
    """The declarations of a route, for FastAPI's decorators."""

    response_class: type[Response]
    responses: dict[int | str, Json]
    openapi_extra: Json | None


def operation(
    answer: type[msgspec.Struct],
    *,
    errors: tuple[int, ...],
    body: type[msgspec.Struct] | None = None,
    etag: bool = False,
    link: bool = False,
    text: bool = False,
    stream: type[msgspec.Struct] | None = None,
    fresh: bool = False,
    waits: bool = False,
    page_tag: bool = False,
    answer_tag: bool = False,
) -> Operation:
    """A call that answers `answer`, or a problem with one of the statuses `errors`.

    With `fresh` it can wait for offsets of Kafka, with `waits` for its row as well. With `page_tag` its first page
    has an ETag, and it can wait for another page. With `answer_tag` the answer has an ETag.
    """
    content = {JSON: _schema(answer.__name__)}
    if text:
        content[TEXT] = _text("Only the state, without quotes.")
    if stream is not None:
        content[NDJSON] = _text(f"One {stream.__name__} per line.")
    responses: dict[int | str, Json] = {
        200: {"description": _sentence(answer), "content": content, "headers": _headers(etag=etag, link=link)}
    }
    if etag:
        responses[412] = {**_error(412), "description": READ_FAILED, "headers": _headers(etag=True)}
        responses[304] = {
            "description": "The row still has a version that `If-None-Match` names.",
            "headers": _headers(etag=True),
        }
    if page_tag:
        responses[200]["headers"]["ETag"] = {"description": PAGE_TAG, "schema": {"type": "string"}}
        responses[304] = {
            "description": "The page is still one that `If-None-Match` names.",
            "headers": _headers() | {"ETag": responses[200]["headers"]["ETag"]},
        }
    if answer_tag:
        responses[200]["headers"]["ETag"] = {"description": ANSWER_TAG, "schema": {"type": "string"}}
        responses[304] = {
            "description": "The numbers are still those that `If-None-Match` names.",
            "headers": _headers() | {"ETag": responses[200]["headers"]["ETag"]},
        }
    responses |= {status: _error(status) for status in errors if status not in responses}
    if GONE in responses:
        responses[GONE] = _error(GONE, "ForgottenOrGone" if waits else "ForgottenProblem")
    extra: Json | None = None
    if fresh or waits:
        responses[504] = _error(504, "LateProblem")
        for status in (200, 304) if waits or page_tag else (200,):
            responses[status]["headers"] |= WAITED | (REACHED if waits else {})
        extra = {"parameters": [PREFER]}
    if waits:
        responses[409] = {**_error(409, "TrackProblem"), "headers": _headers()}
    if body is not None:
        extra = (extra or {}) | {"requestBody": {"required": True, "content": {JSON: _schema(body.__name__)}}}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def events_operation() -> Operation:
    """`POST /v1/events`, which accepts events of our own form and CloudEvents: one, many, or a stream."""
    asked = {
        JSON: _schema("EventOrEvents"),
        NDJSON: _text("One Event per line."),
        # Without a schema: one here keeps openapi-python-client from sending JSON at all (decision 18).
        STRUCTURED: {},
        BATCH: {},
    }
    answered = {
        JSON: _schema("ResultOrBatch"),
        NDJSON: _text(
            "One line per event that was not applied, with its `line` number from 1; the last line has the `summary`."
        ),
    }
    responses: dict[int | str, Json] = {
        200: {"description": "The outcomes of the events.", "content": answered, "headers": _headers()},
        400: _error(400),
        409: _error(409, "OrderOrHeldProblem"),
        413: _error(413),
        415: _error(415),
        422: _error(422, "InterruptedProblem"),
        503: _error(503, "InterruptedProblem"),
    }
    extra: Json = {"requestBody": {"required": True, "content": asked}, "parameters": _attributes()}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def commit_operation() -> Operation:
    """`PUT /v1/workflows/{workflow_key}`, which creates and changes."""
    replayed = {
        "description": "`true` if the action was applied before: this answer repeats the first one.",
        "schema": {"type": "string", "const": "true"},
    }
    headers = {**_headers(etag=True), "Idempotency-Replayed": replayed}
    responses: dict[int | str, Json] = {
        status: {"description": description, "content": {JSON: _schema("Workflow")}, "headers": headers}
        for status, description in ((200, "The row at its next version."), (201, "The new row."))
    }
    responses |= {status: _error(status) for status in (400, 413, 415, 422, 428, 503)}
    responses[409] = {**_error(409, "ActionProblem"), "headers": _headers()}
    responses[412] = {**_error(412, "StateProblem"), "headers": _headers(etag=True)}
    extra = {"requestBody": {"required": True, "content": {JSON: _schema("WorkflowCommit")}}}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def changes_operation() -> Operation:
    """`GET /v1/changes`, which answers a page, lines, or server-sent events."""
    ok = {
        "description": "Changes, and where to go on.",
        "content": {
            JSON: _schema("ChangesPage"),
            NDJSON: _text("A change, row or bookmark a line, each with `next`, the token of its own place."),
            "text/event-stream": _text(
                "Events `change`, `row`, `bookmark` (in silence, every 15 s), `reset` (as a 410); `id` is the token."
            ),
        },
        "headers": _headers(),
    }
    responses: dict[int | str, Json] = {200: ok, 400: _error(400), 410: _error(410, "GoneProblem")}
    responses |= {status: _error(status) for status in (422, 501, 503)}
    last = {
        "name": "Last-Event-ID",
        "in": "header",
        "required": False,
        "description": "The `id` of the last event that was read: a stream goes on after it. It wins over `after`.",
        "schema": {"type": "string"},
    }
    return {"response_class": Response, "responses": responses, "openapi_extra": {"parameters": [last]}}


def act_operation(answer: type[msgspec.Struct], body: type[msgspec.Struct], *errors: int) -> Operation:
    """An operator's act on one entity. The body may be left out, and so may `If-Match`."""
    declared = operation(answer, errors=(400, 404, *errors, 413, 415, 422, 503), body=body)
    responses = declared["responses"]
    responses[200]["headers"] = _headers(etag=True)
    responses[412] = {**_error(412), "description": READ_FAILED, "headers": _headers(etag=True)}
    if declared["openapi_extra"] is not None:
        declared["openapi_extra"]["requestBody"]["required"] = False
    return declared


def retry_operation() -> Operation:
    """`POST /v1/dead-letters/{id}/retry`, which answers like `POST /v1/events`."""
    ok = {"description": "The outcome of the event.", "content": {JSON: _schema("Result")}, "headers": _headers()}
    out = {"description": "An outgoing message: it waits in the outbox again.", "headers": _headers()}
    responses: dict[int | str, Json] = {200: ok, 202: out, 409: _error(409, "OrderOrHeldProblem")}
    responses |= {status: _error(status) for status in (400, 404, 422, 503)}
    return {"response_class": Response, "responses": responses, "openapi_extra": None}


def queue_operation(answer: type[msgspec.Struct], *conflicts: str) -> Operation:
    """A call that takes in the queue of a held entity."""
    declared = operation(answer, errors=(404, 422, 503))
    if conflicts:
        declared["responses"][409] = {**_error(409, *conflicts), "headers": _headers()}
    return declared


def run_operation(answer: type[msgspec.Struct]) -> Operation:
    """A call that is accepted, and carried out later."""
    location = {"description": "The path that says how far it is.", "schema": {"type": "string"}}
    ok = {
        "description": _sentence(answer),
        "content": {JSON: _schema(answer.__name__)},
        "headers": _headers() | {"Location": location},
    }
    responses: dict[int | str, Json] = {202: ok, 409: {**_error(409), "headers": _headers()}}
    responses |= {status: _error(status) for status in (422, 503)}
    return {"response_class": Response, "responses": responses, "openapi_extra": None}


def accepted_operation(answer: type[msgspec.Struct], description: str, *, errors: tuple[int, ...]) -> Operation:
    """A call that has something done later, and answers how far it is; `Location` leads there."""
    location: Json = {"Location": {"description": "Where to see how far it is.", "schema": {"type": "string"}}}
    content = {JSON: _schema(answer.__name__)}
    responses: dict[int | str, Json] = {
        202: {"description": description, "content": content, "headers": _headers() | location}
    }
    responses |= {status: _error(status) for status in errors}
    return {"response_class": Response, "responses": responses, "openapi_extra": None}


def removal_operation(removed: str, *, errors: tuple[int, ...] = (404, 422, 503)) -> Operation:
    """A call that removes something, and answers without a body."""
    responses: dict[int | str, Json] = {204: {"description": f"{removed} is removed.", "headers": _headers()}}
    responses |= {status: _error(status) for status in errors}
    return {"response_class": Response, "responses": responses, "openapi_extra": None}


def metrics_operation() -> Operation:
    """`GET /metrics`, which answers text."""
    ok = {
        "description": "Metrics in Prometheus' text format.",
        "content": {TEXT: _text("Metrics.")},
        "headers": _headers(),
    }
    return {"response_class": Response, "responses": {200: ok}, "openapi_extra": None}


def _schema(name: str) -> Json:
    return {"schema": {"$ref": REFERENCE.format(name=name)}}


def _text(description: str) -> Json:
    return {"schema": {"type": "string", "description": description}}


def _sentence(type_: type[msgspec.Struct]) -> str:
    return (type_.__doc__ or "").strip()


def _headers(*, etag: bool = False, link: bool = False) -> Json:
    headers: Json = {
        "X-Correlation-ID": {
            "description": "The id that the client sent, or a new one.",
            "schema": {"type": "string"},
        }
    }
    if etag:
        headers["ETag"] = {"description": "The row's version, in quotes.", "schema": {"type": "string"}}
    if link:
        headers["Link"] = {"description": "The next page, if there is one.", "schema": {"type": "string"}}
    return headers


def _error(status: int, name: str = "Problem") -> Json:
    """A problem. `errors.py` says what the status means for this call."""
    headers = _headers()
    if status in {409, 503}:
        when = " Only for an event that is early." if status == 409 else ""
        headers["Retry-After"] = {
            "description": f"Seconds to wait.{when}",
            "schema": {"type": "integer", "format": "int64", "minimum": 1},
        }
    return {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: _schema(name)},
        "headers": headers,
    }


def _attributes() -> list[Json]:
    """The headers of a CloudEvent in binary mode. A request has none of them, or all required ones."""
    told = {
        "specversion": "For a CloudEvent in binary mode, whose body holds only its `data`: `1.0`.",
        "id": "The event id, a UUID.",
        "source": "The event's source, such as `/racks/12`. Checked, but not stored.",
        "type": "The event type, such as `registration.accepted`.",
        "subject": "The entity id, a UUID.",
        "time": "When it happened, with a time zone, such as `2026-01-01T12:00:02Z`.",
        "sequence": "The position in the source, in decimal digits, such as `0002`.",
        "previous": "The sequence of the entity's event before this one, such as `0001`; optional.",
        "domain": f"The domain; `{DEFAULT_DOMAIN}` by default.",
        "correlationid": "A UUID to store with the event; optional.",
        "partitionkey": "Checked, but not stored; optional.",
    }
    return [
        {
            "name": f"ce-{name}",
            "in": "header",
            "required": False,
            "description": description,
            "schema": {"type": "string"},
        }
        for name, description in told.items()
    ]
