"""Markdown from values: tables, and a JSON schema in a few words."""

import re
from collections.abc import Iterable
from typing import Any

from app.domain.positions import MAX_NUMBER

Json = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(words: Iterable[str]) -> str:
    """These words as code, with commas between them."""
    return ", ".join(f"`{word}`" for word in words)


def paragraph(text: str | None) -> str:
    """A docstring's paragraphs, each in one line, with an empty line between them. A line in bold begins one."""
    paragraphs = re.split(r"\n\n|\n\s*(?=\*\*)", (text or "").strip())
    return "\n\n".join(" ".join(each.split()) for each in paragraphs)


def in_words(schema: Json, link: str = "") -> str:
    """A JSON schema in a few words, such as `string, 1 to 64 characters`. `link` is the page that has the values."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}]({link}#{name.lower()})"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    for many in ("anyOf", "oneOf"):
        if many in schema:
            return " or ".join(in_words(one, link) for one in schema[many])
    kind = schema.get("type")
    if isinstance(kind, list):
        return " or ".join(in_words({**schema, "type": each}, link) for each in kind)
    if kind == "array":
        most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"array of {in_words(schema['items'], link)}{most}"
    if kind == "string":
        return _string(schema)
    if kind == "integer":
        return _integer(schema)
    return str(kind or "any JSON")


def default_of(schema: Json) -> str:
    """The default of an optional field, as JSON writes it."""
    default = schema.get("default")
    if default is None:
        return "null" if "default" in schema else ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{default}`" if isinstance(default, str | int | float) else "`{}`" if default == {} else "`[]`"


def _string(schema: Json) -> str:
    named = {"uuid": "UUID", "date-time": "time with a zone"}.get(schema.get("format", ""))
    if named:
        return named
    if "contentEncoding" in schema:
        return "string in base64"
    low, high = schema.get("minLength"), schema.get("maxLength")
    if low is not None and high is not None:
        return f"string, {low} to {high} characters"
    return "string, not empty" if low == 1 else "string"


def _integer(schema: Json) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None:
        return "integer"
    return f"integer from {low}" + ("" if high in {None, MAX_NUMBER} else f" to {high:,}")
