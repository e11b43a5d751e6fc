"""The part of JSON Schema that the document uses, so that generators of clients read it as it is meant.

JSON Schema often has several forms for one meaning, and generators know one of them well. `plain` rewrites the
schemas of msgspec and FastAPI to these forms:

- a value that may be null has a list of types, or is `oneOf` a reference and the type null;
- an integer is `int64` and a number is `double`, as generators else take 32 bits or leave the size open;
- an enumeration says the type of its values, and is a constant if it has only one;
- no default is null, as an optional field that is absent is null anyway; its sentence says any other default;
- a description is text for readers: without the indentation of a docstring, and with JSON's null for Python's None.
"""

import inspect
import json
import re
from typing import Any

from app.api.openapi.operations import Json

NULL = {"type": "null"}
_NONE = re.compile(r"\bNone\b")


def plain(schema: Json) -> Json:
    """The same schema in the forms that generators know. The argument stays as it is."""
    written: Json = {key: _inner(key, value) for key, value in schema.items()}
    if written.get("default", ...) is None:
        del written["default"]
    if "description" in written:
        written["description"] = _NONE.sub("null", inspect.cleandoc(written["description"]))
    if NULL in written.get("anyOf", []):
        written = _nullable(written)
    if written.get("type") in ("integer", ["integer", "null"]):
        written["format"] = "int64"
    if written.get("type") in ("number", ["number", "null"]):
        written["format"] = "double"
    if "type" not in written and all(isinstance(value, str) for value in written.get("enum", [None])):
        written["type"] = "string"
        if len(written["enum"]) == 1:
            [written["const"]] = written.pop("enum")
    return written


def _inner(key: str, value: object) -> Any:
    if key in {"default", "example", "examples", "enum", "const"}:  # values, not schemas
        return value
    if isinstance(value, dict):
        if key in {"properties", "$defs"}:
            return {name: plain(each) for name, each in value.items()}
        return plain(value)
    if isinstance(value, list):
        return [plain(each) if isinstance(each, dict) else each for each in value]
    return value


def _nullable(schema: Json) -> Json:
    """A choice between one schema and null, as one schema."""
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    [one] = [each for each in schema["anyOf"] if each != NULL]
    if "$ref" in one:
        return {**rest, "oneOf": [one, NULL]}
    if "enum" in one:
        one = {**one, "enum": [*one["enum"], None]}
    types = one["type"] if isinstance(one["type"], list) else [one["type"]]
    return {**one, **rest, "type": [*types, "null"]}


def say_default(field: Json) -> None:
    """Move the default of a field that may be absent into its sentence.

    As a keyword it misleads: openapi-typescript takes a field with a default as one that is always there.
    """
    if "default" in field:
        default = field.pop("default")
        shown = default if isinstance(default, str) else json.dumps(default)
        field["description"] = f"{field.get('description', '')} Default: `{shown}`.".strip()


def not_null(schema: Json) -> Json:
    """A schema without its null, for a field that is left out where it has no value."""
    [one] = [each for each in schema["anyOf"] if each != NULL]
    return {**one, **{key: value for key, value in schema.items() if key not in {"anyOf", "default"}}}
