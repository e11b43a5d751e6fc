"""One name, one meaning: a name that a reader has met means the same elsewhere."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"app": ROOT, "clients/python/pqs_client": ROOT / "clients" / "python"}

TABLES = "The class of a table is named as the class of its rows: it is only used inside the store."
CLIENT = "The client raises it for the problem that the service makes of its own error of this name."
NAMED_BY_TEXT = "The client takes the values of the service's enum as text."
COMMANDS = "The service that a command asks, behind the client: a command knows no other."
ASGI = "The name of ASGI's specification. The routes and the runtime do not import each other."

# Names that several modules define, and why that may be.
ALLOWED = {
    "DeadLetter": TABLES,
    "Watermark": TABLES,
    "Service": COMMANDS,
    "ForgottenError": CLIENT,
    "Clock": NAMED_BY_TEXT,
    "Order": NAMED_BY_TEXT,
    "HeldError": CLIENT,
    "LetterFilter": "What the client sends, and what the service keeps of it: the same fields.",
    "LateError": CLIENT,
    "MAX_WAIT": "The longest wait of one call: the service has it, and the client keeps to it.",
    "ActionConflictError": CLIENT,
    "ForbiddenError": CLIENT,
    "NotFoundError": CLIENT,
    "PreconditionFailedError": CLIENT,
    "TooLargeError": CLIENT,
    "UnauthenticatedError": CLIENT,
    "UnavailableError": CLIENT,
    "UnreadableError": CLIENT,
    "JSON": "A media type: the same for the service, its OpenAPI document and the client.",
    "NDJSON": "A media type: the same for the service, its OpenAPI document and the client.",
    "App": ASGI,
    "Headers": ASGI,
    "Message": ASGI,
    "Scope": ASGI,
}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the service and of the client."""
    for folder, root in SOURCES.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(file.read_text())


def definitions(module: ast.Module) -> Iterator[str]:
    """The public classes, type aliases and constants of a module, without type variables."""
    for node in module.body:
        names: list[str] = []
        match node:
            case ast.ClassDef(name=name):
                names = [name]
            case ast.Assign(targets=targets):
                names = [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.AnnAssign(target=ast.Name(id=name)):
                names = [name]
            case _:
                pass
        yield from (name for name in names if name[0].isupper() and len(name) > 1)


@cache
def shared() -> dict[str, set[str]]:
    """The names that several modules define, with those modules. A constant counts if another module imports it."""
    defined, imported = defaultdict[str, set[str]](set), set[tuple[str, str]]()
    for name, module in modules():
        for each in definitions(module):
            defined[each].add(name)
        for node in ast.walk(module):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {(node.module, alias.name) for alias in node.names}
    return {
        name: homes
        for name, homes in defined.items()
        if len(homes) > 1 and (not name.isupper() or any((home, name) in imported for home in homes))
    }


def test_a_name_is_defined_once() -> None:
    """No two modules define the same class, alias or imported constant; ALLOWED lists exceptions with reasons."""
    found = {name: homes for name, homes in shared().items() if name not in ALLOWED}
    assert found == {}


@pytest.mark.parametrize("name", ALLOWED)
def test_an_exception_is_needed(name: str) -> None:
    """Each name in ALLOWED is still defined more than once."""
    assert name in shared()
