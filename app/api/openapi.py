"""The OpenAPI document: written from the types that answers are encoded from, with examples from real answers."""

import json
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any, TypedDict

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response

from app.api import schemas
from app.domain.events import Event
from app.domain.registration import Registration
from app.projector import Result

Json = dict[str, Any]  # a piece of the document
REFERENCE = "#/components/schemas/{name}"
PROBLEM = "application/problem+json"

WHY: dict[int, str] = {
    400: "The body is not JSON (the detail says where it breaks), or the cursor is bad.",
    404: "There is no such entity.",
    409: "The event is early, or in conflict with its entity's row.",
    413: "The body is too large.",
    415: "The content type is none that this call reads.",
    422: "The input is readable and wrong: `errors` says what and where.",
    503: "The database does not answer, or its schema is not the expected one: come again after `Retry-After`.",
}

DESCRIPTION = """
One row per node that says where its registration stands: a projection of an event log.

Events come in through `POST /v1/events`, in any order and any number of times; each has one of six outcomes. What the
row is now, how many rows are in each state, and which deadlines have passed is answered by the reads. Errors are
problem details (RFC 9457), and every answer carries an `X-Correlation-ID`: yours, when you send one.
"""


class Operation(TypedDict):
    """What a route says of itself beyond its name, for FastAPI's decorators."""

    response_class: type[Response]
    responses: dict[int | str, Json]
    openapi_extra: Json | None


@cache
def examples() -> dict[str, Json]:
    """Answers of a real service, by name. `tests/api/test_examples.py` asks for them again and compares."""
    text = files("app.api").joinpath("examples.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


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
    content = {"application/json": _content(answer)}
    if text:
        content["text/plain"] = {"schema": {"type": "string"}, "example": "active"}
    if stream is not None:
        content["application/x-ndjson"] = {
            "schema": {"type": "string", "description": f"A {stream.__name__} a line."}
        }
    ok: Json = {"description": (answer.__doc__ or "").strip(), "content": content, "headers": _headers(etag, link)}
    responses: dict[int | str, Json] = {200: ok}
    if etag:
        responses[304] = {
            "description": "The row still has the version that `If-None-Match` names.",
            "headers": _headers(etag, False),
        }
    responses |= {status: _error(status) for status in errors}
    extra = None
    if body is not None:
        extra = {"requestBody": {"required": True, "content": {"application/json": _content(body)}}}
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def events_operation() -> Operation:
    """`POST /v1/events`, which reads and answers three shapes."""
    event = {"$ref": REFERENCE.format(name="Event")}
    shown = examples()
    described: Operation = {
        "response_class": Response,
        "responses": {status: _error(status) for status in (400, 409, 413, 415, 422, 503)},
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "oneOf": [event, {"type": "array", "items": event, "maxItems": 10_000}],
                        },
                        "examples": {
                            name: {"summary": name.replace("_", " "), "value": shown["requests"][name]}
                            for name in shown["requests"]
                        },
                    },
                    "application/x-ndjson": {"schema": {"type": "string", "description": "An event a line."}},
                },
            }
        },
    }
    described["responses"][200] = {
        "description": "What became of the events.",
        "headers": _headers(False, False),
        "content": {
            "application/json": {
                "schema": {"anyOf": [{"$ref": REFERENCE.format(name=n)} for n in ("Result", "BatchAnswer")]},
                "examples": {name: {"value": shown["answers"][name]} for name in ("Result", "BatchAnswer")},
            },
            "application/x-ndjson": {
                "schema": {
                    "type": "string",
                    "description": "A line for each event that was not applied, with its `line` number from 1, "
                    "and a line with the `summary` at the end.",
                }
            },
        },
    }
    described["responses"][409]["content"][PROBLEM] = _content(schemas.OrderProblem)
    described["responses"][503]["content"][PROBLEM]["schema"] = {
        "anyOf": [{"$ref": REFERENCE.format(name=n)} for n in ("Problem", "InterruptedProblem")]
    }
    return described


def metrics_operation() -> Operation:
    """`GET /metrics`, which answers text."""
    ok = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {"response_class": Response, "responses": {200: ok, 422: _error(422)}, "openapi_extra": None}


def install(app: FastAPI) -> None:
    """Make `app` write its document this way, once."""

    def document() -> Json:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                tags=[
                    {"name": "events", "description": "The one way in."},
                    {"name": "entities", "description": "Where nodes stand."},
                    {"name": "counts", "description": "How many are where."},
                    {"name": "overdue", "description": "Deadlines that have passed."},
                    {"name": "health", "description": "For those who run the service."},
                ],
                license_info={"name": "MIT", "identifier": "MIT"},
            )
            components = document.setdefault("components", {}).setdefault("schemas", {})
            components |= _components()
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


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
        Event,
    ]
    written, components = msgspec.json.schema_components(types, ref_template=REFERENCE, schema_hook=_anything)
    components["Event"] = {"title": "Event", **written[-1]}
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
    return components


def _anything(type_: type) -> Json:
    """What a capability may hold: any JSON."""
    if type_ is object:
        return {"description": "Any JSON."}
    raise NotImplementedError


def _content(type_: type[msgspec.Struct]) -> Json:
    content: Json = {"schema": {"$ref": REFERENCE.format(name=type_.__name__)}}
    if type_.__name__ in examples()["answers"]:
        content["example"] = examples()["answers"][type_.__name__]
    return content


def _headers(etag: bool, link: bool) -> Json:
    headers = {
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


def _error(status: int) -> Json:
    content: Json = {"schema": {"$ref": REFERENCE.format(name="Problem")}}
    if str(status) in examples()["problems"]:
        content["example"] = examples()["problems"][str(status)]
    headers = _headers(False, False)
    if status in {409, 503}:
        headers["Retry-After"] = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
    return {
        "description": WHY.get(status, HTTPStatus(status).phrase),
        "content": {PROBLEM: content},
        "headers": headers,
    }
