"""The OpenAPI document: valid, complete, and true of the service."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.definitions import OPENAPI_31
from schemathesis.specs.openapi.schemas import OpenApiSchema

from app.api.schemas import MAX_WAIT
from app.domain.positions import MAX_NUMBER
from app.main import create_app
from app.settings import read_settings
from app.wire.cloudevents import BATCH, STRUCTURED
from app.wire.events import MAX_EVENTS
from tests.api.conftest import service_on
from tests.databases import new_database
from tests.making import Json, event_json, life, node

EXAMPLES_EACH = 12  # requests that are made up for each operation
LATE = 504  # what was waited for has not come: no fault of the server
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    negative_data_rejection,
]


def document() -> Json:
    """The document, made without a running service."""
    return dict(create_app(read_settings({"database_url": "postgresql:///"})).openapi())


def operations(spec: Json) -> Iterator[tuple[str, str, Json]]:
    """Every operation with its path and method."""
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def within(value: object) -> Iterator[Json]:
    """Every object within the document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from within(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from within(inner)


IDS = {
    ("/v1/events", "post"): "postEvents",
    ("/v1/entities", "get"): "listEntities",
    ("/v1/entities/lookup", "post"): "lookupEntities",
    ("/v1/entities/{entity_id}", "get"): "getEntity",
    ("/v1/entities/{entity_id}/state", "get"): "getEntityState",
    ("/v1/entities/{entity_id}/history", "get"): "getHistory",
    ("/v1/events/{event_id}", "get"): "getEvent",
    ("/v1/entities/{entity_id}/forget", "post"): "forgetEntity",
    ("/v1/entities/{entity_id}/deregister", "post"): "deregisterEntity",
    ("/v1/state-counts", "get"): "countStates",
    ("/v1/overdue/ack", "get"): "listOverdueAcks",
    ("/v1/overdue/liveness", "get"): "listOverdueLiveness",
    ("/v1/overview", "get"): "getOverview",
    ("/v1/domains", "get"): "listDomains",
    ("/v1/changes", "get"): "followChanges",
    ("/v1/workflows", "get"): "listWorkflows",
    ("/v1/workflows/{workflow_key}", "get"): "getWorkflow",
    ("/v1/workflows/{workflow_key}", "put"): "commitWorkflow",
    ("/v1/watermarks", "get"): "listWatermarks",
    ("/v1/watermarks/{topic}/{partition}", "delete"): "dropWatermark",
    ("/v1/snapshots", "get"): "getSnapshots",
    ("/v1/snapshots/republish", "post"): "republishSnapshots",
    ("/v1/dead-letters", "get"): "listDeadLetters",
    ("/v1/audit", "get"): "listAudit",
    ("/v1/dead-letters/entities", "get"): "listHeldEntities",
    ("/v1/dead-letters/entities/{entity_id}", "get"): "getHeldEntity",
    ("/v1/dead-letters/entities/{entity_id}/retry", "post"): "retryHeldEntity",
    ("/v1/dead-letters/entities/{entity_id}/skip", "post"): "skipHeldEntity",
    ("/v1/dead-letters/retry", "post"): "retryDeadLetters",
    ("/v1/dead-letters/delete", "post"): "deleteDeadLetters",
    ("/v1/dead-letters/runs/{run_id}", "get"): "getDeadLetterRun",
    ("/v1/dead-letters/{id}", "get"): "getDeadLetter",
    ("/v1/system", "get"): "getSystem",
    ("/v1/keys", "get"): "listKeys",
    ("/v1/dead-letters/{id}/retry", "post"): "retryDeadLetter",
    ("/v1/dead-letters/{id}", "delete"): "deleteDeadLetter",
    ("/livez", "get"): "getLiveness",
    ("/readyz", "get"): "getReadiness",
    ("/metrics", "get"): "getMetrics",
}

ERRORS = {
    "postEvents": {400, 409, 413, 415, 422, 503},
    "listEntities": {400, 422, 503, 504},
    "lookupEntities": {400, 413, 415, 422, 503, 504},
    "getEntity": {404, 409, 410, 412, 422, 501, 503, 504},
    "getEntityState": {404, 409, 410, 412, 422, 501, 503, 504},
    "getHistory": {400, 404, 422, 501, 503},
    "getEvent": {404, 422, 501, 503},
    "forgetEntity": {400, 404, 412, 413, 415, 422, 503},
    "deregisterEntity": {400, 404, 410, 412, 413, 415, 422, 503},
    "countStates": {422, 503, 504},
    "listOverdueAcks": {400, 422, 503, 504},
    "listOverdueLiveness": {400, 422, 503, 504},
    "getOverview": {422, 503},
    "listDomains": {400, 422, 503},
    "followChanges": {400, 410, 422, 501, 503},
    "listWorkflows": {400, 422, 503},
    "getWorkflow": {404, 412, 422, 503},
    "commitWorkflow": {400, 409, 412, 413, 415, 422, 428, 503},
    "listWatermarks": {422, 503},
    "dropWatermark": {404, 409, 422, 503},
    "getSnapshots": {404, 422, 503},
    "republishSnapshots": {404, 422, 503},
    "listDeadLetters": {400, 422, 503},
    "listAudit": {400, 422, 503},
    "getSystem": {422},
    "listKeys": {422, 503},
    "retryDeadLetter": {400, 404, 409, 422, 503},
    "deleteDeadLetter": {404, 409, 422, 503},
    "getDeadLetter": {404, 422, 503},
    "listHeldEntities": {400, 422, 503},
    "getHeldEntity": {404, 422, 503},
    "retryHeldEntity": {404, 409, 422, 503},
    "skipHeldEntity": {404, 422, 503},
    "retryDeadLetters": {409, 422, 503},
    "deleteDeadLetters": {409, 422, 503},
    "getDeadLetterRun": {404, 422, 503},
    "getLiveness": set(),
    "getReadiness": {503},
    "getMetrics": set(),
}


async def test_the_document_is_served(shared: httpx.AsyncClient) -> None:
    """`/openapi.json` serves the document."""
    assert (await shared.get("/openapi.json")).json() == document()


def test_the_document_is_openapi_3_1() -> None:
    """The document is valid by the schema of OpenAPI 3.1."""
    spec = document()
    assert spec["openapi"].startswith("3.1.")
    jsonschema_rs.validator_for(OPENAPI_31).validate(spec)


def test_every_schema_is_a_json_schema() -> None:
    """Each component is a valid schema of JSON Schema 2020-12, as OpenAPI 3.1 requires."""
    for name, schema in document()["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}), (
            name
        )


def test_every_reference_leads_somewhere() -> None:
    """Each `$ref` and each discriminator names an existing component."""
    spec = document()
    known = {f"#/components/schemas/{name}" for name in spec["components"]["schemas"]}
    named = {piece["$ref"] for piece in within(spec) if isinstance(piece.get("$ref"), str)}
    for piece in within(spec):
        mapping = piece.get("discriminator")
        if isinstance(mapping, dict):
            named |= set(mapping["mapping"].values())
    assert named <= known


def test_every_component_is_used() -> None:
    """Each component is referenced, except those for bodies that are not JSON or have no schema."""
    spec = document()
    named = {piece["$ref"].rpartition("/")[2] for piece in within(spec) if isinstance(piece.get("$ref"), str)}
    assert set(spec["components"]["schemas"]) - named == {"StreamSummary", "CloudEvent"}


def test_components_have_clean_names() -> None:
    """Each component's name is one word of letters."""
    assert [name for name in document()["components"]["schemas"] if not (name.isalpha() and name[0].isupper())] == []


def test_every_operation_has_its_id() -> None:
    """The document has each call of the contract, with an id of its own."""
    assert {(path, method): o["operationId"] for path, method, o in operations(document())} == IDS


def test_every_operation_has_its_errors() -> None:
    """Each operation lists the errors that it can answer, each as a problem."""
    listed: dict[str, set[int]] = {}
    for _, _, operation in operations(document()):
        errors = {int(status): one for status, one in operation["responses"].items() if int(status) >= 400}
        listed[operation["operationId"]] = set(errors)
        assert all(list(one["content"]) == ["application/problem+json"] for one in errors.values())
    refusals = {id_: {401, 403, 429} for id_ in ERRORS if id_ not in {"getLiveness", "getReadiness"}}
    assert listed == {id_: errors | refusals.get(id_, set()) for id_, errors in ERRORS.items()}


def test_every_operation_has_the_tag_of_its_resource() -> None:
    """Each operation has one tag, which the document describes; every described tag is used, in that order."""
    spec = document()
    used = [tag for _, _, operation in operations(spec) for tag in operation["tags"]]
    assert all(len(operation["tags"]) == 1 for _, _, operation in operations(spec))
    assert list(dict.fromkeys(used)) == [tag["name"] for tag in spec["tags"]]


def test_every_property_is_described() -> None:
    """Each property of each schema has a sentence."""
    bare = [
        (name, field)
        for name, schema in document()["components"]["schemas"].items()
        for piece in within(schema)
        for field, one in piece.get("properties", {}).items()
        if not one.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("field", ["summary", "description", "operationId", "tags"])
def test_every_operation_is_described(field: str) -> None:
    """Each operation has a summary, a description, an id and a tag."""
    assert [path for path, _, operation in operations(document()) if not operation.get(field)] == []


def test_every_parameter_is_described() -> None:
    """Each parameter has a description."""
    bare = [
        (operation["operationId"], parameter["name"])
        for _, _, operation in operations(document())
        for parameter in operation["parameters"]
        if not parameter.get("description")
    ]
    assert bare == []


def test_every_body_has_examples() -> None:
    """Each request or answer body has an example for each of its media types."""
    bare = []
    for _, _, operation in operations(document()):
        bodies = {"request": operation["requestBody"]} if "requestBody" in operation else {}
        for name, body in {**bodies, **operation["responses"]}.items():
            for media, content in body.get("content", {}).items():
                if not content.get("examples"):
                    bare.append((operation["operationId"], name, media))
    assert bare == []


def complete(spec: Json) -> Json:
    """The document with the schemas of CloudEvents added at their media types, where it has none."""
    content = spec["paths"]["/v1/events"]["post"]["requestBody"]["content"]
    reference = {"$ref": "#/components/schemas/CloudEvent"}
    content[STRUCTURED]["schema"] = reference
    content[BATCH]["schema"] = {"type": "array", "items": reference, "maxItems": MAX_EVENTS}
    return spec


def test_every_example_fits_its_schema() -> None:
    """Each JSON example is valid by its schema."""
    spec = complete(document())
    for _, _, operation in operations(spec):
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in body.get("content", {}).values():
                schema = {**content["schema"], "components": spec["components"]}
                validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
                for name, example in content["examples"].items():
                    problems = [error.message for error in validator.iter_errors(example["value"])]
                    assert problems == [], (operation["operationId"], name)


def test_an_example_of_an_error_is_from_its_own_path() -> None:
    """The example problems of an operation have its path as instance, and the right status."""
    for path, _, operation in operations(document()):
        for status, body in operation["responses"].items():
            for example in body.get("content", {}).get("application/problem+json", {}).get("examples", {}).values():
                shown = example["value"]
                assert shown["status"] == int(status)
                assert len(shown["instance"].split("/")) == len(path.split("/")), operation["operationId"]
                assert shown["instance"].startswith(path.partition("{")[0])


def test_only_what_is_removed_has_no_answer() -> None:
    """A removal answers 204 only, what is done later 202; every other call may answer 200."""
    good = {
        operation["operationId"]: [status for status in operation["responses"] if status.startswith("2")]
        for _, _, operation in operations(document())
    }
    for removal in ("deleteDeadLetter", "dropWatermark"):
        assert good.pop(removal) == ["204"]
    for later in ("retryDeadLetters", "deleteDeadLetters", "republishSnapshots"):
        assert good.pop(later) == ["202"]
    assert [id_ for id_, statuses in good.items() if "200" not in statuses] == []


def test_every_time_says_that_it_is_one() -> None:
    """Each field named for a moment has the format `date-time`."""
    bare = []
    for name, schema in document()["components"]["schemas"].items():
        for field, one in schema.get("properties", {}).items():
            if field == "stands_at":  # that is a position
                continue
            is_time = field.endswith(("_at", "_deadline")) or field in {"as_of", "time", "timestamp"}
            if is_time and one.get("format") != "date-time":
                bare.append((name, field))
    assert bare == []


def test_the_source_of_a_dead_letter_is_one_of_two() -> None:
    """The document lists the two possible values of `source`."""
    assert document()["components"]["schemas"]["DeadMessage"]["properties"]["source"]["enum"] == ["consumer", "relay"]


def test_the_headers_of_a_cloudevent_are_there() -> None:
    """Each attribute of a structured CloudEvent, except its data, is documented as a header of the binary mode."""
    spec = document()
    attributes = set(spec["components"]["schemas"]["CloudEvent"]["properties"])
    headers = {each["name"] for each in spec["paths"]["/v1/events"]["post"]["parameters"] if each["in"] == "header"}
    assert headers - {"X-Correlation-ID"} == {
        f"ce-{name}" for name in attributes - {"data", "data_base64", "datacontenttype"}
    }


# --- The service, held against the document ------------------------------------------------------------------------

COMMIT = {"state": {"step": "new"}, "provenance": {"effect_id": "order", "timestamp": "2026-01-01T00:00:00Z"}}
CREATING = {"If-None-Match": "*"}


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread, for schemathesis, which calls from outside an event loop."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def populated(portal: BlockingPortal) -> Iterator[httpx.AsyncClient]:
    """A service with nodes in several states, and a workflow."""
    events: list[Json] = []
    for number in range(6):
        events += life(node(number))[: number + 1]
    events.append(event_json("registration.rejected", 2, entity_id=node(0)))
    with (
        portal.wrap_async_context_manager(new_database()) as url,
        portal.wrap_async_context_manager(service_on(url)) as client,
    ):
        assert portal.call(lambda: client.post("/v1/events", json=events)).status_code == 200
        created = portal.call(lambda: client.put("/v1/workflows/order%2F17", json=COMMIT, headers=CREATING))
        assert created.status_code == 201
        yield client


@pytest.fixture(scope="module")
def described() -> OpenApiSchema:
    """The document as schemathesis reads it, without keys, which this service does not need (see test_access.py)."""
    spec = document()
    for _, _, operation in operations(spec):
        operation.pop("security")
    return schemathesis.openapi.from_dict(complete(spec), config=SchemathesisConfig(seed=1))


def modes() -> Iterator[tuple[str, GenerationMode]]:
    """Each operation with valid requests, and with invalid ones if it has a body or a non-header parameter."""
    for _, _, operation in operations(document()):
        yield operation["operationId"], GenerationMode.POSITIVE
        if "requestBody" in operation or any(each["in"] != "header" for each in operation["parameters"]):
            yield operation["operationId"], GenerationMode.NEGATIVE


@pytest.mark.parametrize(("operation_id", "mode"), sorted(modes()))
def test_answers_fit_the_document(
    operation_id: str,
    mode: GenerationMode,
    described: OpenApiSchema,
    portal: BlockingPortal,
    populated: httpx.AsyncClient,
) -> None:
    """The answer to any request, valid or not, has a documented status, type, headers and body."""
    operation = described.find_operation_by_id(operation_id)
    known = {"entity_id": str(node(3)), "workflow_key": "order/17"}
    strategy = operation.as_strategy(generation_mode=mode)
    if operation_id == "postEvents":
        strategy |= strategy.map(without_attributes)
    if parameters := {name: value for name, value in known.items() if f"{{{name}}}" in operation.path}:
        strategy |= operation.as_strategy(generation_mode=mode, path_parameters=parameters)
    if mode is GenerationMode.NEGATIVE:
        strategy = strategy.filter(lambda case: not cut(case))
    statuses: set[int] = set()

    @hypothesis.settings(
        max_examples=EXAMPLES_EACH,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def ask(case: Case[Any]) -> None:
        answer = portal.call(send, populated, impatient(case))
        statuses.add(answer.status_code)
        checks = [check for check in CHECKS if answer.status_code != LATE or check is not not_a_server_error]
        case.validate_response(answer, checks=checks)

    ask()
    assert statuses


def without_attributes(case: Case[Any]) -> Case[Any]:
    """The case without CloudEvents headers: generated ones almost never form the whole set that an event needs."""
    for name in [name for name in case.headers if name.startswith("ce-")]:
        del case.headers[name]
    return case


def impatient(case: Case[Any]) -> Case[Any]:
    """The case with a wait of a hundredth of a second, where it has one: generated ones are up to a minute."""
    with suppress(KeyError, TypeError, ValueError):
        if 0 < float(case.query["wait"]) <= MAX_WAIT:
            case.query["wait"] = 0.01
    if "wait" in str(case.headers.get("Prefer", "")):
        del case.headers["Prefer"]
    return case


def cut(case: Case[Any]) -> bool:
    """Whether the only fault of `limit` is that it is above 64 bits: the service lowers it like any large value."""
    return str(case.query.get("limit", "")).isdigit() and int(case.query["limit"]) > MAX_NUMBER


async def send(client: httpx.AsyncClient, case: Case[Any]) -> httpx.Response:
    """Send a request that schemathesis generated."""
    asked = case.as_transport_kwargs(base_url=str(client.base_url))
    headers = {name.encode("latin-1"): value.encode("latin-1") for name, value in asked["headers"].items()}
    body = {"json": asked["json"]} if "json" in asked else {"content": asked.get("data") or b""}
    return await client.request(asked["method"], asked["url"], params=asked["params"], headers=headers, **body)
