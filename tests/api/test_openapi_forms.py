"""The OpenAPI document in forms that readers and client generators can use."""

import re
from pathlib import Path

import jsonschema_rs
import pytest

from app.api.openapi.fields import BY_NAME, BY_SCHEMA
from app.domain.events import EVENT_TYPES
from tests.api.test_openapi import document, operations, within
from tests.making import Json


def test_bodies_are_named_components() -> None:
    """The schema of each body is a component or text, so that generators have a name for its type."""
    unnamed = []
    for _, _, operation in operations(document()):
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            for media, content in body.get("content", {}).items():
                schema = content.get("schema", {"type": "string"})
                if list(schema) != ["$ref"] and schema["type"] != "string":
                    unnamed.append((operation["operationId"], media))
    assert unnamed == []


def test_what_may_be_null_says_so_in_one_form() -> None:
    """A nullable value is a list of types, or a choice of a reference and null; no default is null."""
    for piece in within(document()["components"]["schemas"]):
        assert "anyOf" not in piece or all(list(each) == ["required"] for each in piece["anyOf"]), piece
        assert piece.get("default", "") is not None, piece
        choices = piece.get("oneOf", [])
        assert all("$ref" in each or each == {"type": "null"} for each in choices), piece


def test_an_event_is_one_of_its_types() -> None:
    """An event's type selects its component: each component has one type, and the mapping leads to it."""
    components = document()["components"]["schemas"]
    mapping = components["Event"]["discriminator"]["mapping"]
    names = {type_: reference.rpartition("/")[2] for type_, reference in mapping.items()}
    assert set(names) == set(EVENT_TYPES)
    assert {type_: components[name]["properties"]["type"]["const"] for type_, name in names.items()} == {
        type_: type_ for type_ in EVENT_TYPES
    }
    assert components["Event"]["oneOf"] == [{"$ref": reference} for reference in mapping.values()]


@pytest.mark.parametrize(
    ("position", "is_one"),
    [
        ({"sequence": 1}, True),
        ({"sequence": 2, "previous": 1}, True),
        ({"partition": "nodes-0", "offset": 0}, True),
        ({"partition": "nodes-0", "offset": 2, "previous": 1}, True),
        ({}, False),
        ({"previous": 1}, False),
        ({"partition": "nodes-0"}, False),
        ({"offset": 1}, False),
        ({"sequence": 1, "offset": 1}, False),
        ({"sequence": 1, "partition": "nodes-0", "offset": 1}, False),
        ({"sequence": None}, False),
    ],
)
def test_a_position_names_one_place(position: Json, is_one: bool) -> None:
    """The schema of positions accepts what the service accepts: a sequence, or a partition and an offset."""
    schema = document()["components"]["schemas"]["Position"]
    assert jsonschema_rs.Draft202012Validator(schema).is_valid(position) is is_one


def test_every_integer_has_64_bits() -> None:
    """Every integer is `int64`, as generators otherwise assume 32 bits."""
    short = [
        piece
        for piece in within(document())
        if piece.get("type") in ("integer", ["integer", "null"]) and piece.get("format") != "int64"
    ]
    assert short == []


def test_every_field_has_a_sentence() -> None:
    """Each field of each schema is described in a sentence."""
    bare = [
        (name, field)
        for name, schema in document()["components"]["schemas"].items()
        for field, one in schema.get("properties", {}).items()
        if not one.get("description", "").endswith(".")
    ]
    assert bare == []


def test_every_sentence_has_its_field() -> None:
    """The table of field descriptions names only fields of the document."""
    schemas = document()["components"]["schemas"]
    stale = [(name, field) for name, field in BY_SCHEMA if field not in schemas.get(name, {}).get("properties", {})]
    known = {field for schema in schemas.values() for field in schema.get("properties", {})}
    assert stale == []
    assert set(BY_NAME) - known == set()


def test_no_header_is_filled_in() -> None:
    """Request headers have no examples and no defaults: pages that fill them in would change the call.

    The exception is the condition of a commit, which is refused without one: it is filled in for a new workflow.
    """
    filled = [
        (operation["operationId"], parameter["name"])
        for _, _, operation in operations(document())
        for parameter in operation["parameters"]
        if parameter["in"] == "header" and {"example", "examples", "default"} & {*parameter, *parameter["schema"]}
    ]
    assert filled == [("commitWorkflow", "If-None-Match")]


def test_every_path_is_filled_in() -> None:
    """Each path parameter has an example; the entity is the one of the README's walk."""
    shown = {}
    for _, _, operation in operations(document()):
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                shown[parameter["name"]] = parameter["example"]
    assert set(shown) == {"entity_id", "event_id", "workflow_key", "id", "run_id", "topic", "partition"}
    walk = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"/v1/entities/{shown['entity_id']}/state" in walk


def test_media_types_have_their_own_examples() -> None:
    """No two media types of a body share an example's name: a page that keeps the name would show the wrong one."""
    for _, _, operation in operations(document()):
        for body in (operation.get("requestBody", {}), *operation["responses"].values()):
            names = [name for content in body.get("content", {}).values() for name in content["examples"]]
            assert len(names) == len(set(names)), operation["operationId"]


def test_each_resource_has_its_tag() -> None:
    """The calls of one resource share a tag, which the document names and no other resource has."""
    spec = document()
    resources: dict[str, set[str]] = {}
    for path, _, operation in operations(spec):
        [tag] = operation["tags"]
        parts = path.split("/")
        resources.setdefault(tag, set()).add(parts[2] if parts[1] == "v1" else "health")
    assert all(len(each) == 1 for each in resources.values()), resources
    assert sorted(resources) == sorted(tag["name"] for tag in spec["tags"])


def test_an_error_is_described_as_it_is_for_its_call() -> None:
    """The errors of a call are described in terms of its own resource and inputs."""
    nouns = {
        "entities": "entity",
        "events": "event",
        "workflows": "workflow",
        "dead-letters": "dead letter",
        "watermarks": "watermark",
        "snapshots": "SNAPSHOTS",  # the setting, without which there are none
    }
    for _, _, operation in operations(document()):
        told = {status: one["description"] for status, one in operation["responses"].items()}
        parameters = {each["name"] for each in operation["parameters"] if each["in"] in {"path", "query"}}
        if "404" in told:
            [own] = [noun for tag, noun in nouns.items() if [tag] == operation["tags"]]
            assert [noun for noun in nouns.values() if noun in told["404"]] == [own]
        assert ("ursor" in told.get("400", "")) == ("cursor" in parameters), operation["operationId"]
        assert ("body" in told.get("400", "")) == ("requestBody" in operation), operation["operationId"]
        if "422" in told and "requestBody" not in operation and operation["operationId"] != "retryDeadLetter":
            assert set(re.findall(r"`(\w+)`", told["422"])) - {"errors"} == parameters, operation["operationId"]
