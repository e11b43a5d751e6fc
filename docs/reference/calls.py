"""The blocks about HTTP, from the OpenAPI document: the calls, their values, and the statuses of errors."""

import re
from collections.abc import Iterator
from functools import cache

from app import main
from app.settings import read_settings
from docs.reference.markdown import Json, code, default_of, in_words, paragraph, table

EVERYWHERE = "X-Correlation-ID"  # a header of every request and every answer: the page says so once
PYTHON = re.compile(r" Raises [^.]*\.")  # a sentence that only callers in Python need
DEFAULT = re.compile(r" Default: (`[^`]*`)\.$")
NOT_LISTED = "ce-"  # headers of CloudEvents in binary mode: the tutorial has them


@cache
def document() -> Json:
    """The OpenAPI document. No database is asked for it."""
    return main.create_app(read_settings({"database_url": "postgresql:///"})).openapi()


def _operations() -> Iterator[tuple[str, str, Json]]:
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def calls() -> str:
    """A section for each call."""
    parts = []
    for tag in document()["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n\n")
        parts += [
            f"### {method} {path}\n\n{_call(operation)}\n"
            for method, path, operation in _operations()
            if operation["tags"] == [tag["name"]]
        ]
    return "".join(parts)


def _call(operation: Json) -> str:
    parts = [f"**{operation['summary']}** (`{operation['operationId']}`)\n\n"]
    parts.append(paragraph(operation["description"]) + "\n")
    asked = [
        each
        for each in operation["parameters"]
        if each["name"] != EVERYWHERE and not each["name"].startswith(NOT_LISTED)
    ]
    if asked:
        lines = [
            [
                f"`{each['name']}`",
                each["in"],
                in_words(each["schema"]),
                "required" if each["required"] else default_of(each["schema"]),
                paragraph(each["description"]),
            ]
            for each in asked
        ]
        parts.append("\n" + table(["parameter", "in", "value", "default", "meaning"], lines))
    bodies = operation.get("requestBody", {}).get("content", {})
    if bodies:
        lines = [[f"`{media}`", _body(content)] for media, content in bodies.items()]
        parts.append("\n" + table(["content type of the body", "body"], lines))
    answers = [
        [f"`{status}`", paragraph(answer["description"]), _contents(answer), _headers(answer)]
        for status, answer in sorted(operation["responses"].items())
    ]
    parts.append("\n" + table(["status", "meaning", "body", "headers"], answers))
    return "".join(parts)


def _contents(answer: Json) -> str:
    contents = answer.get("content", {})
    named = [
        _body(content) + ("" if media.endswith("json") and len(contents) == 1 else f" (`{media}`)")
        for media, content in contents.items()
    ]
    return "; ".join(named)


def _body(content: Json) -> str:
    if "schema" not in content:  # CloudEvents: their component is shown among the values
        [example] = content["examples"].values()
        many = isinstance(example["value"], list)
        return "array of [CloudEvent](#cloudevent)" if many else "[CloudEvent](#cloudevent)"
    schema = content["schema"]
    if schema.get("type") == "string":
        return paragraph(schema["description"]).removesuffix(".")
    return in_words(schema)


def _headers(answer: Json) -> str:
    return ", ".join(f"`{name}`" for name in answer.get("headers", {}) if name != EVERYWHERE)


def values() -> str:
    """A section for each value, but for the events, which have a page of their own."""
    parts = []
    events = document()["components"]["schemas"]["Event"]["discriminator"]["mapping"].values()
    own = {reference.rpartition("/")[2] for reference in events}
    for name, schema in document()["components"]["schemas"].items():
        if name in own or name.endswith("Data"):
            continue
        parts.append(f"### {name}\n\n{_value(name, schema)}\n")
    return "".join(parts)


def _value(name: str, schema: Json) -> str:
    if name == "Event":
        return "An event or a trigger: see [events](events.md).\n"
    text = PYTHON.sub("", paragraph(schema.get("description")))
    if "enum" in schema:
        return f"{text}\n\nOne of {code(schema['enum'])}.\n"
    if "oneOf" in schema or "items" in schema:
        return f"{text}\n\nThe value: {in_words(schema)}.\n"
    required = schema.get("required", [])
    lines = [
        [
            f"`{field}`",
            in_words(value) + f": {DEFAULT.sub('', paragraph(value['description']))}",
            "" if field in required else _default(value),
        ]
        for field, value in schema.get("properties", {}).items()
    ]
    return f"{text}\n\n{table(['field', 'value', 'default'], lines)}"


def _default(field: Json) -> str:
    """The default of a field: the document has it at the end of the field's sentence."""
    told = DEFAULT.search(field["description"])
    return told[1] if told else "may be absent"


def statuses() -> str:
    """Every status of an error, the calls that answer it, and what it means there."""
    found: dict[str, dict[str, list[str]]] = {}
    for _, _, operation in _operations():
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                told = found.setdefault(status, {})
                told.setdefault(paragraph(answer["description"]), []).append(operation["operationId"])
    many = 6  # more calls than this are not named one by one
    lines = []
    for status, told in sorted(found.items()):
        for meaning, ids in told.items():
            lines.append(
                [f"`{status}`", meaning, ", ".join(f"`{id_}`" for id_ in ids) if len(ids) <= many else "most calls"]
            )
    return table(["status", "meaning", "calls"], lines)
