"""The client's wheel: built from this repository, installed on its own, and used against a service."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

import app.client
import pqs_client
from app.domain import events
from app.wire import answers
from tests.making import event_json
from tests.processes import PATIENCE, Service

# The tests block, and so are not async; the fixture that makes a database is, and runs where this one is asked for.
pytestmark = pytest.mark.usefixtures("anyio_backend")

ROOT = Path(__file__).resolve().parents[2]
DEPENDENCIES = ("httpx", "msgspec")

CALL = """
import asyncio, importlib.util, json, sys
from pqs_client import Client, Outcome, RegistrationState

async def main():
    async with Client(sys.argv[1]) as client:
        sent = await client.events.send(json.loads(sys.argv[2]))
        row = await client.entities.get(sent.entity_id, domain=sent.domain)
    assert sent.outcome is Outcome.APPLIED
    assert row.current_state is RegistrationState.PENDING_REGISTRATION

asyncio.run(main())
assert importlib.util.find_spec("app") is None
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def run(*command: str | Path) -> str:
    """Run a program to its end; returns its output."""
    done = subprocess.run([*map(str, command)], capture_output=True, check=False, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def with_dependencies(names: Iterable[str]) -> set[str]:
    """Distributions with all their dependencies."""
    waiting, found = list(names), set[str]()
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        needed = map(Requirement, distribution(name).requires or [])
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's wheel, built as for a release: first a source archive, then the wheel from it."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT / "clients" / "python")
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with only the client and its dependencies; needs no network."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in with_dependencies(DEPENDENCIES):
        dist = distribution(name)
        for top in {file.parts[0] for file in dist.files or [] if file.parts[0] != ".."}:
            if top != "__pycache__":
                (packages / top).symlink_to(str(dist.locate_file(top)))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    return folder / "bin" / "python"


def test_client_works_without_the_service_installed(python: Path, service: Service) -> None:
    """The client needs only httpx and msgspec, installs no module `app`, and its calls work."""
    event = event_json("registration.initiated", 1, domain="wheel")
    imported = set(run(python, "-I", "-c", CALL, service.url, httpx.Response(200, json=event).text).split())
    assert imported.isdisjoint({"app", "fastapi", "sqlalchemy", "asyncpg", "pydantic", "click", "uvicorn"})


def test_wheel_requires_what_the_client_imports(wheel: Path) -> None:
    """The wheel has one top-level package, and requires only httpx and msgspec."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"pqs_client"}
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert sorted(Requirement(line.partition(": ")[2]).name for line in required) == sorted(DEPENDENCIES)


def test_versions_are_the_same() -> None:
    """Client and service have the same version, and require the same releases of shared dependencies."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    clients = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())["project"]
    assert clients["version"] == ours["version"]
    assert set(clients["dependencies"]) <= set(ours["dependencies"])


def test_values_are_the_services_own() -> None:
    """In the repository and in the service's wheel, client and service share one definition of each value."""
    for name in pqs_client.__all__:
        module = getattr(pqs_client, name).__module__ if isinstance(getattr(pqs_client, name), type) else ""
        assert module.startswith(("app.", "pqs_client")) or name in {"Clock", "News", "Order", "State"}
    assert pqs_client.StateCounts is answers.StateCounts
    assert pqs_client.Initiated is events.Initiated


def test_every_answer_and_event_type_is_exported() -> None:
    """Each type that a call returns or takes can be imported from `pqs_client`."""
    tree = ast.parse((ROOT / "app" / "wire" / "answers.py").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    unwrapped = {"Health", "WatermarkList"}  # a base, and a list that the call unpacks
    uncalled = {"AuditEntry", "AuditPage", "ChangesPage", "RowItem"}  # the client has no call for them
    assert defined - set(pqs_client.__all__) == unwrapped | uncalled
    assert {each.__name__ for each in (*events.FACT_CLASSES, *events.TRIGGER_CLASSES)} <= set(pqs_client.__all__)


@pytest.mark.parametrize(("old", "now"), [("Client", "Client"), *app.client.RENAMED.items()])
def test_old_name_works_and_warns(old: str, now: str) -> None:
    """`from app.client import Client` works for one more release, with a warning that names the new module."""
    with pytest.warns(DeprecationWarning, match=f"import {now} from pqs_client, not {old} from app.client"):
        assert getattr(app.client, old) is getattr(pqs_client, now)
    with pytest.raises(AttributeError, match="has no attribute 'Service'"):
        app.client.Service  # noqa: B018 - the look-up is the test
