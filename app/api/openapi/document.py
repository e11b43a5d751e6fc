"""The document itself: what FastAPI writes, completed with schemas, parameters and examples."""

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.openapi.components import component_schemas
from app.api.openapi.examples import illustrate
from app.api.openapi.operations import Json

DESCRIPTION = """
One row per node says how far its registration has come: a projection of an event log.

Events enter by `POST /v1/events`, any number of times, and in any order when each names its predecessor (`previous`);
without it, an event that overtakes another makes the overtaken one `stale`, and its content is lost to the row,
because events are not kept. Each event has one of six outcomes. The reads answer the present row, the number of rows
in each state, and the deadlines that have passed. Orchestrators keep their own state beside it, as workflows that are
changed by compare-and-swap. Errors are problem details (RFC 9457), and every answer carries an `X-Correlation-ID`:
yours, when you send one.
"""

TAGS = [
    {"name": "events", "description": "The one way in."},
    {"name": "entities", "description": "Current registrations."},
    {"name": "counts", "description": "Entities per state."},
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
            written.setdefault("components", {}).setdefault("schemas", {}).update(component_schemas())
            for operation in _operations(written):
                _describe_parameters(operation)
                illustrate(operation)
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
