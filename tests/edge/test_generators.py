"""Clients that generators make from the OpenAPI document: generated, compiled, and used against a live service.

Each client does the same, with types that the generator made: it posts one event, an array and an early event,
reads the entity, lists entities by state, counts, and creates, changes and reads a workflow, with a stale commit in
between.
The programs are in `tests/edge/clients`. The sequences are above 2^32, so a client with 32 bits fails.

The tests take minutes, so they run by `make generators` and not with the others. Each generator comes from the
registry of its language into the test's folder; a test says so and is skipped where its tool is not there.
"""

import sys
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from tests.edge.programs import program, run
from tests.making import node
from tests.processes import Service

pytestmark = pytest.mark.generators

INSTALL = 600.0  # seconds
CLIENTS = Path(__file__).parent / "clients"
PYTHON_TOOLS = ("openapi-python-client==0.29.1", "ruff", "mypy")
TYPESCRIPT_TOOLS = ("openapi-typescript@7.13.0", "openapi-fetch@0.17.0", "typescript@5", "tsx@4", "@types/node@22")
GO_TOOL = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
JAVA_TOOL = ("org.openapitools", "openapi-generator-cli", "7.25.0")
OPEN = ("--additional-properties", "disallowAdditionalPropertiesIfNotPresent=false")  # for answers of later releases


def install(*command: object, cwd: Path, **environment: str) -> None:
    """Install a generator; skips the test if that is impossible."""
    done = run(*command, cwd=cwd, env=environment, timeout=INSTALL, check=False)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} cannot bring the generator here: {done.stderr[-300:]!r}")


def document(service: Service, folder: Path) -> Path:
    """The OpenAPI document in a file."""
    path = folder / "openapi.json"
    path.write_bytes(httpx.get(f"{service.url}/openapi.json").content)
    return path


def arguments(service: Service, entity_id: UUID) -> tuple[str, str, str]:
    """The arguments of each client: the service's address, its entity, and its workflow."""
    return service.url, str(entity_id), f"orders/{entity_id}"


def assert_done(service: Service, entity_id: UUID) -> None:
    """Check that the service has the data that the client reports to have written."""
    row = httpx.get(f"{service.url}/v1/entities/{entity_id}").json()
    assert row["current_state"] == "ack_received"
    assert row["last_applied_sequence"] == 5_000_000_003
    assert row["capabilities"] == {"gpu": True}
    workflow = httpx.get(f"{service.url}/v1/workflows/orders%2F{entity_id}").json()
    assert workflow["version"] == 2
    assert workflow["state"] == {"step": "pay"}
    assert workflow["provenance"]["effect_id"] == "payment"


def test_python(live: Service, tmp_path: Path) -> None:
    """The client of openapi-python-client, used as its types require, does its work without a warning."""
    install(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    tools = tmp_path / "venv" / "bin"
    install(tools / "python", "-m", "pip", "install", "--quiet", *PYTHON_TOOLS, cwd=tmp_path)
    command = (tools / "openapi-python-client", "generate", "--path", document(live, tmp_path))
    path = f"{tools}:/usr/bin:/bin"  # it formats by ruff; and it warns of NDJSON, which it does not know
    run(*command, "--meta", "none", "--output-path", "generated", cwd=tmp_path, env={"PATH": path}, timeout=INSTALL)
    (tmp_path / "client.py").write_bytes((CLIENTS / "client.py.txt").read_bytes())
    run(tools / "python", "-m", "compileall", "-q", "generated", cwd=tmp_path)
    # The generator's own types have faults (in `Client.__exit__`): the types of the calls are what is checked.
    run(tools / "mypy", "--follow-imports=silent", "client.py", cwd=tmp_path, timeout=INSTALL)
    run(tools / "python", "-W", "error", "client.py", *arguments(live, node(1)), cwd=tmp_path)
    assert_done(live, node(1))


def test_typescript(live: Service, tmp_path: Path) -> None:
    """The types of openapi-typescript are strict TypeScript, and a client with them does its work."""
    npm, node_js = program("npm"), program("node")
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    install(npm, "install", "--no-audit", "--no-fund", *TYPESCRIPT_TOOLS, cwd=tmp_path)
    tools = tmp_path / "node_modules" / ".bin"
    run(tools / "openapi-typescript", document(live, tmp_path), "-o", "schema.ts", cwd=tmp_path, timeout=INSTALL)
    (tmp_path / "client.ts").write_bytes((CLIENTS / "client.ts").read_bytes())
    options = ("--strict", "--noEmit", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler")
    run(tools / "tsc", *options, "--types", "node", "client.ts", cwd=tmp_path, timeout=INSTALL)
    run(node_js, "--import", "tsx", "client.ts", *arguments(live, node(2)), cwd=tmp_path)
    assert_done(live, node(2))


def test_go(live: Service, tmp_path: Path) -> None:
    """The client of oapi-codegen compiles and does its work."""
    go = program("go")
    settings = {"GOBIN": str(tmp_path / "bin"), "GOFLAGS": "-mod=mod"}
    install(go, "install", GO_TOOL, cwd=tmp_path, **settings)
    tool = tmp_path / "bin" / "oapi-codegen"
    made = run(
        tool, "-generate", "types,client", "-package", "pqs", document(live, tmp_path), cwd=tmp_path, timeout=INSTALL
    )
    (tmp_path / "pqs").mkdir()
    (tmp_path / "pqs" / "client.go").write_bytes(made.stdout)
    (tmp_path / "main.go").write_bytes((CLIENTS / "main.go").read_bytes())
    (tmp_path / "go.mod").write_text("module example.invalid/client\n\ngo 1.22\n")
    install(go, "mod", "tidy", cwd=tmp_path, **settings)
    run(go, "vet", ".", cwd=tmp_path, env=settings, timeout=INSTALL)
    run(go, "build", "-o", "client", ".", cwd=tmp_path, env=settings, timeout=INSTALL)
    run(tmp_path / "client", *arguments(live, node(3)), cwd=tmp_path)
    assert_done(live, node(3))


@pytest.mark.parametrize(("number", "options"), [(4, ()), (5, OPEN)], ids=["as it comes", "with unknown fields"])
def test_java(live: Service, tmp_path: Path, number: int, options: tuple[str, ...]) -> None:
    """The client of openapi-generator, with its default library, compiles and does its work."""
    maven, java = program("mvn"), program("java")
    group, name, version = JAVA_TOOL
    copy = ("dependency:copy", f"-Dartifact={group}:{name}:{version}", f"-DoutputDirectory={tmp_path}")
    install(maven, "-q", *copy, cwd=tmp_path)
    build = tmp_path / "client"
    generator = (java, "-jar", tmp_path / f"{name}-{version}.jar", "generate", "-g", "java")
    run(*generator, "-i", document(live, tmp_path), "-o", build, *options, cwd=tmp_path, timeout=INSTALL)
    install(maven, "-q", "dependency:build-classpath", "-Dmdep.outputFile=classpath", cwd=build)
    source = build / "src" / "main" / "java" / "client"
    source.mkdir(parents=True)
    (source / "Main.java").write_bytes((CLIENTS / "Main.java").read_bytes())
    run(maven, "-q", "-Dmaven.test.skip", "compile", cwd=build, timeout=INSTALL)
    classpath = f"{build}/target/classes:{(build / 'classpath').read_text().strip()}"
    run(java, "-cp", classpath, "client.Main", *arguments(live, node(number)), cwd=build)
    assert_done(live, node(number))
