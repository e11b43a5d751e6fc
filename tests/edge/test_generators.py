"""Clients that generators make from the OpenAPI document: generated, compiled, and used against a live service.

They take minutes, so they run by `make generators` and not with the other tests. Each generator comes from the
registry of its own language, into the test's folder.
"""

import json
import sys
from pathlib import Path

import httpx
import pytest

from tests.edge.programs import program, run
from tests.making import event_json, node
from tests.processes import Service

pytestmark = pytest.mark.generators

INSTALL = 600.0  # seconds
GO_TOOL = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.5.0"
JAVA_TOOL = ("org.openapitools", "openapi-generator-cli", "7.14.0")


def install(*command: object, cwd: Path, **environment: str) -> None:
    """Bring a generator here; the test is skipped where that cannot be."""
    done = run(*command, cwd=cwd, env=environment, timeout=INSTALL, check=False)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} cannot bring the generator here: {done.stderr[-300:]!r}")


def document(service: Service, folder: Path) -> Path:
    """The document, in a file."""
    path = folder / "openapi.json"
    path.write_bytes(httpx.get(f"{service.url}/openapi.json").content)
    return path


def is_in(service: Service, number: int) -> bool:
    """Whether a node's event was taken in."""
    return httpx.get(f"{service.url}/v1/entities/{node(number)}").status_code == 200


PYTHON = """
import json, sys
from generated import Client
from generated.api.counts import count_states
from generated.api.entities import get_entity
from generated.api.events import post_events
from generated.models import Initiated

url, event = sys.argv[1], json.loads(sys.argv[2])
with Client(base_url=url, raise_on_unexpected_status=True) as client:
    answer = post_events.sync(client=client, body=Initiated.from_dict(event))
    assert answer.outcome == "applied", answer
    row = get_entity.sync(event["entity_id"], client=client)
    assert row.current_state == "pending_registration", row
    assert count_states.sync(client=client).total >= 1
"""


def test_python(live: Service, tmp_path: Path) -> None:
    """The client of openapi-python-client passes its type checker's imports, posts an event and reads it back."""
    install(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    install(python, "-m", "pip", "install", "--quiet", "openapi-python-client", "ruff", cwd=tmp_path)
    tool = tmp_path / "venv" / "bin" / "openapi-python-client"
    path = f"{tool.parent}:/usr/bin:/bin"
    options = ("--meta", "none", "--output-path", "generated")
    command = (tool, "generate", "--path", document(live, tmp_path), *options)
    run(*command, cwd=tmp_path, env={"PATH": path}, timeout=INSTALL)  # it warns of NDJSON, which it does not know
    event = event_json("registration.initiated", 1, entity_id=node(1))
    run(python, "-W", "error", "-c", PYTHON, live.url, json.dumps(event), cwd=tmp_path)
    assert is_in(live, 1)


TYPESCRIPT = """
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

const client = createClient<paths>({ baseUrl: process.argv[2]! });
const event: components["schemas"]["Initiated"] = JSON.parse(process.argv[3]!);
const posted = await client.POST("/v1/events", { body: event });
const answer = posted.data;
if (answer === undefined || typeof answer === "string" || !("outcome" in answer) || answer.outcome !== "applied") {
  throw new Error(JSON.stringify(posted));
}
const read = await client.GET("/v1/entities/{entity_id}", { params: { path: { entity_id: event.entity_id } } });
if (read.error !== undefined || read.data.current_state !== "pending_registration") {
  throw new Error(JSON.stringify(read));
}
const counts = await client.GET("/v1/state-counts");
if (counts.error !== undefined || counts.data.total < 1) {
  throw new Error(JSON.stringify(counts));
}
"""


def test_typescript(live: Service, tmp_path: Path) -> None:
    """The types of openapi-typescript are strict TypeScript; a client with them posts an event and reads it back."""
    npm = program("npm")
    node_ = program("node")
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    packages = ("openapi-typescript", "openapi-fetch", "typescript@5", "tsx", "@types/node")
    install(npm, "install", "--no-audit", "--no-fund", *packages, cwd=tmp_path)
    tools = tmp_path / "node_modules" / ".bin"
    run(tools / "openapi-typescript", document(live, tmp_path), "-o", "schema.ts", cwd=tmp_path, timeout=INSTALL)
    (tmp_path / "client.ts").write_text(TYPESCRIPT)
    options = ("--strict", "--noEmit", "--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler")
    run(tools / "tsc", *options, "--types", "node", "client.ts", cwd=tmp_path, timeout=INSTALL)
    event = event_json("registration.initiated", 1, entity_id=node(2))
    run(node_, "--import", "tsx", "client.ts", live.url, json.dumps(event), cwd=tmp_path)
    assert is_in(live, 2)


GO = """
package main

import (
	"context"
	"encoding/json"
	"os"

	"example.invalid/client/pqs"
	"github.com/google/uuid"
)

func main() {
	client, err := pqs.NewClientWithResponses(os.Args[1])
	if err != nil {
		panic(err)
	}
	var body pqs.PostEventsJSONRequestBody
	if err := json.Unmarshal([]byte(os.Args[2]), &body); err != nil {
		panic(err)
	}
	posted, err := client.PostEventsWithResponse(context.Background(), &pqs.PostEventsParams{}, body)
	if err != nil || posted.StatusCode() != 200 {
		panic(string(posted.Body))
	}
	id := uuid.MustParse(os.Args[3])
	read, err := client.GetEntityWithResponse(context.Background(), id, &pqs.GetEntityParams{})
	if err != nil || read.JSON200 == nil || string(read.JSON200.CurrentState) != "pending_registration" {
		panic(string(read.Body))
	}
}
"""


def test_go(live: Service, tmp_path: Path) -> None:
    """The client of oapi-codegen compiles, posts an event and reads it back."""
    go = program("go")
    settings = {"GOBIN": str(tmp_path / "bin"), "GOFLAGS": "-mod=mod"}
    install(go, "install", GO_TOOL, cwd=tmp_path, **settings)
    (tmp_path / "pqs").mkdir()
    made = run(
        tmp_path / "bin" / "oapi-codegen", "-generate", "types,client", "-package", "pqs", document(live, tmp_path),
        cwd=tmp_path, timeout=INSTALL,
    )  # fmt: skip
    (tmp_path / "pqs" / "client.go").write_bytes(made.stdout)
    (tmp_path / "main.go").write_text(GO)
    (tmp_path / "go.mod").write_text("module example.invalid/client\n\ngo 1.22\n")
    run(go, "mod", "tidy", cwd=tmp_path, env=settings, timeout=INSTALL)
    run(go, "build", "-o", "client", ".", cwd=tmp_path, env=settings, timeout=INSTALL)
    event = event_json("registration.initiated", 1, entity_id=node(3))
    run(tmp_path / "client", live.url, json.dumps(event), str(node(3)), cwd=tmp_path)
    assert is_in(live, 3)


JAVA = """
package client;

import com.fasterxml.jackson.databind.ObjectMapper;
import org.openapitools.client.ApiClient;
import org.openapitools.client.api.HealthApi;
import org.openapitools.client.model.Event;

public class Main {
    public static void main(String[] arguments) throws Exception {
        var client = new ApiClient();
        client.updateBaseUri(arguments[0]);
        if (!"alive".equals(String.valueOf(new HealthApi(client).getLiveness().getStatus()))) {
            throw new IllegalStateException();
        }
        Event event = client.getObjectMapper().readValue(arguments[1], Event.class);
        System.out.println(client.getObjectMapper().writeValueAsString(event));
    }
}
"""


def test_java(live: Service, tmp_path: Path) -> None:
    """The client of openapi-generator compiles; it reads an event as one of its kinds, and writes it as it was."""
    maven, java = program("mvn"), program("java")
    group, name, version = JAVA_TOOL
    install(
        maven,
        "-q",
        "dependency:copy",
        f"-Dartifact={group}:{name}:{version}",
        f"-DoutputDirectory={tmp_path}",
        cwd=tmp_path,
    )
    run(
        java, "-jar", tmp_path / f"{name}-{version}.jar", "generate", "-g", "java", "--library", "native",
        "-i", document(live, tmp_path), "-o", tmp_path / "client", cwd=tmp_path, timeout=INSTALL,
    )  # fmt: skip
    source = tmp_path / "client" / "src" / "main" / "java" / "client"
    source.mkdir(parents=True)
    (source / "Main.java").write_text(JAVA)
    build = tmp_path / "client"
    install(maven, "-q", "dependency:build-classpath", "-Dmdep.outputFile=classpath", cwd=build)
    run(maven, "-q", "-Dmaven.test.skip", "compile", cwd=build, timeout=INSTALL)
    event = event_json("registration.initiated", 1, entity_id=node(4))
    classpath = f"{build}/target/classes:{(build / 'classpath').read_text().strip()}"
    written = json.loads(run(java, "-cp", classpath, "client.Main", live.url, json.dumps(event), cwd=build).stdout)
    assert {key: value for key, value in written.items() if key in event} == event
