"""The document: FastAPI's, completed with schemas, parameters and examples."""

from collections.abc import Iterator

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api import swagger
from app.api.openapi.access import secure
from app.api.openapi.components import component_schemas
from app.api.openapi.dialect import plain
from app.api.openapi.errors import explain
from app.api.openapi.examples import illustrate
from app.api.openapi.operations import Json

DESCRIPTION = """
This service keeps one row per node that says how far its registration has come: a projection of an event log.

Send events to `POST /v1/events`, each as often as you like. They may arrive in any order if each names its
predecessor in `position.previous`; without `previous`, an event that arrives after a later event of its entity is
`stale`, and its content is lost. Every event has one of six outcomes: `applied`, `ignored`, `duplicate`, `stale`,
`early` or `conflict`. Events are not kept.

The reads answer the current rows, the number of entities per state, and the deadlines that have passed.
Orchestrators can keep their own state beside the rows, as workflows that are changed by compare-and-swap. Errors are
problem details (RFC 9457). Every answer carries an `X-Correlation-ID`: the one you sent, or a new one.
"""

TAGS = [
    {"name": "events", "description": "Send events: the only way to change a registration."},
    {"name": "entities", "description": "Current registrations."},
    {"name": "counts", "description": "Entities per state."},
    {"name": "overdue", "description": "Deadlines that have passed without an answer of the node."},
    {"name": "overview", "description": "A domain and the service at a glance."},
    {"name": "domains", "description": "The domains, with their entities per state."},
    {"name": "changes", "description": "Follow what changes, as it changes."},
    {"name": "workflows", "description": "The state of orchestrators, changed by compare-and-swap."},
    {"name": "watermarks", "description": "Progress of the Kafka consumers."},
    {"name": "snapshots", "description": "The whole rows, on a compacted topic of Kafka."},
    {"name": "dead-letters", "description": "Messages that failed."},
    {"name": "audit", "description": "Who did what, for operators."},
    {"name": "system", "description": "How the service is set up, for operators."},
    {"name": "keys", "description": "Who is let in, for operators."},
    {"name": "health", "description": "Health and metrics, for operators."},
]

CORRELATION_ID = {
    "name": "X-Correlation-ID",
    "in": "header",
    "required": False,
    "description": "1 to 128 printable characters of ASCII, returned and logged. A UUID is also stored with events "
    "that have no `correlation_id` of their own. Anything else is replaced by a new UUID.",
    "schema": {"type": "string"},
}
IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "ETags that the client already has. If the row has one of them, the answer is 304.",
    "schema": {"type": "string"},
}
IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the row that the new state builds on. A list allows any of them; `*` allows any row.",
    "schema": {"type": "string"},
}
IF_THIS = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "description": "The ETag of the row that was read: a row that has changed since is left alone, with 412.",
    "schema": {"type": "string"},
}
IF_NOTHING = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "`*` for a workflow that has no row yet. This or `If-Match` is required; if both are sent, both "
    "conditions must hold.",
    "schema": {"type": "string"},
    "example": "*",  # a commit has to have one of the two: with this one `/docs` works at the first click
}
# What exists after the README's walk, or is there first: `/docs` fills them in.
PATH_EXAMPLES: Json = {
    "entity_id": "5c1f3c1e-9d53-4c58-8a3c-1f0e2d3c4b5a",
    "event_id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1a01",
    "workflow_key": "orders/17",
    "id": 1,
    "run_id": "0f1d7f0a-6f0b-4a53-9f3e-5b7f0c1d2e3f",
    "topic": "nodes",
    "partition": 0,
}


def install(app: FastAPI, *, issuer: str | None = None) -> None:
    """Make `app` write its document this way, at the first request for it. `issuer` is of OpenID Connect."""

    def document() -> Json:
        if app.openapi_schema is None:
            written = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                tags=TAGS,
                servers=app.servers,
                license_info={"name": "MIT", "identifier": "MIT"},
            )
            written.setdefault("components", {}).setdefault("schemas", {}).update(component_schemas())
            for operation in _operations(written):
                _describe_parameters(operation)
                explain(operation)
                illustrate(operation)
            secure(written, app, issuer)
            app.openapi_schema = written
        return app.openapi_schema

    app.add_route("/docs", swagger.page, include_in_schema=False)
    app.add_route("/docs/{digest}/{name}", swagger.asset, include_in_schema=False)
    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _operations(document: Json) -> Iterator[Json]:
    for item in document["paths"].values():
        yield from item.values()


def _describe_parameters(operation: Json) -> None:
    """Describe what a request may carry beside its body. A parameter may be absent, but not null."""
    parameters = operation.setdefault("parameters", [])
    for parameter in parameters:
        schema = parameter["schema"]
        if "anyOf" in schema:
            [schema] = [one for one in schema["anyOf"] if one != {"type": "null"}]
        schema.pop("title", None)
        told = schema.pop("description", None)
        parameter["schema"] = plain(schema)
        parameter.setdefault("description", told or "The entity's id.")
        if parameter["in"] == "path" and parameter["name"] in PATH_EXAMPLES:
            parameter["example"] = PATH_EXAMPLES[parameter["name"]]
    if "304" in operation["responses"]:
        parameters.append(IF_NONE_MATCH)
    if operation["operationId"] in {"forgetEntity", "deregisterEntity"}:
        parameters.append(IF_THIS)
    if "428" in operation["responses"]:
        parameters += [IF_MATCH, IF_NOTHING]
    parameters.append(CORRELATION_ID)
