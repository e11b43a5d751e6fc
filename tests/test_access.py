"""Access as an operator meets it: starts that are refused, keys that end, and secrets that stay secret."""

import asyncio
import json
import re
import shlex
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from app.access.keys import LENGTH, SECRET_LENGTH
from tests.making import NODE, event_json
from tests.processes import command_lines, pqs, refusal, serving, until

EVERYTHING = ("--domain", "*", "--workflow-prefix", "*", "--scope", "entities:read", "--scope", "operations:read")
WITHIN = 5.0  # seconds in which a revocation holds everywhere
ENTITY = f"/v1/entities/{NODE}"


def make_key(url: str, name: str, *more: str) -> str:
    """A new key, as an operator makes it."""
    made = pqs("keys", "create", name, *EVERYTHING, *more, database_url=url)
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    assert len(key) == LENGTH
    return key


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_a_service_without_keys_is_refused_to_others(host: str, database_url: str) -> None:
    """Without a word about keys, nothing listens beyond this machine; the refusal names the ways out."""
    line = refusal(pqs("serve", "--host", host, "--port", 0, database_url=database_url, allowed_hosts="*"))
    assert all(way in line for way in ("PQS_HOST", "PQS_AUTH=required", "PQS_AUTH=insecure"))


async def test_an_open_service_warns_at_each_start(tmp_path: Path, database_url: str) -> None:
    """What is open on purpose says so in its log."""
    with serving(tmp_path, "--port", 0, database_url=database_url, auth="insecure") as service:
        assert "PQS_AUTH=insecure: whoever reaches 127.0.0.1" in service.log
        with service.client() as client:
            assert client.get("/v1/state-counts", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 200


async def test_the_first_words_of_a_service_that_asks_for_keys_work(tmp_path: Path, database_url: str) -> None:
    """The commands that it prints make a key and send it; those of one that asks for none send none."""
    with serving(tmp_path, "--port", 0, database_url=database_url, auth="required") as service:
        made, *calls = re.findall(r"^  (.*)$", service.printed, re.MULTILINE)
        command = made.removeprefix("export PQS_TOKEN=$(pqs ").removesuffix(")").split()
        token = pqs(*command, database_url=database_url).stdout.strip()
        for call in calls:
            words = shlex.split(call.replace("$PQS_TOKEN", token))
            asking = await asyncio.create_subprocess_exec(
                *words, "-s", "-f", "-m", "20", stdout=asyncio.subprocess.PIPE
            )
            answer, _ = await asking.communicate()
            assert asking.returncode == 0, (call, answer)
        assert len(calls) == 3
    (tmp_path / "open").mkdir()
    with serving(tmp_path / "open", "--port", 0, database_url=database_url) as service:
        assert "PQS_TOKEN" not in service.printed


async def test_a_revocation_holds_everywhere_within_seconds(tmp_path: Path, database_url: str) -> None:
    """Two services, one of two processes: a revoked key stops counting at all of them, on old connections too."""
    key = make_key(database_url, "passing")
    header = {"Authorization": f"Bearer {key}"}
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    given = {"database_url": database_url, "auth": "required", "log_level": "debug", "pool_size": 2}
    with serving(first, "--port", 0, workers=2, **given) as one, serving(second, "--port", 0, **given) as other:
        # A connection is one process's: of eight, next to surely each process has some.
        clients = [one.client() for _ in range(8)] + [other.client()]
        try:
            assert [client.get(ENTITY, headers=header).status_code for client in clients] == [404] * 9
            assert pqs("keys", "revoke", "passing", database_url=database_url).returncode == 0
            revoked_at = time.monotonic()
            until(lambda: {client.get(ENTITY, headers=header).status_code for client in clients} == {401}, "401")
            assert time.monotonic() - revoked_at < WITHIN
        finally:
            for client in clients:
                client.close()
        secret = key[15 : 15 + SECRET_LENGTH]
        assert [line for line in command_lines() if secret in line] == []
        assert secret not in one.log + other.log
        assert "key:passing/" in one.log


async def test_load_sends_the_token_of_a_file(tmp_path: Path, database_url: str) -> None:
    """`pqs load --token-file` is let in; without it, 401 in one line that names the way."""
    made = pqs("keys", "create", "loader", "--scope", "events:write", "--domain", "*", database_url=database_url)
    file = tmp_path / "key"
    file.write_text(made.stdout)
    lines = tmp_path / "events.ndjson"
    lines.write_text(
        '{"event_id":"0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1d01","type":"registration.initiated",'
        f'"entity_id":"{NODE}","position":{{"sequence":1}},"occurred_at":"2026-01-01T00:00:00Z",'
        '"data":{"node_type":"compute"}}\n'
    )
    folder = tmp_path / "service"
    folder.mkdir()
    with (
        serving(folder, "--port", 0, database_url=database_url, auth="required") as service,
        service.client() as client,
    ):
        url = str(client.base_url)
        assert "401 Unauthenticated" in refusal(pqs("load", lines, "--url", url))
        done = pqs("load", lines, "--url", url, "--token-file", file)
        assert done.returncode == 0, done.stderr
        assert pqs("load", lines, "--url", url, token_file=file).returncode == 0
    far = refusal(pqs("load", lines, "--url", "http://pqs.example", "--token-file", file))
    assert "use https" in far
    assert made.stdout.strip() not in far


async def test_an_open_stream_ends_with_its_key(tmp_path: Path, database_url: str) -> None:
    """A stream that a key has begun delivers no change that came after the revocation, and ends."""
    follower = {"Authorization": f"Bearer {make_key(database_url, 'follower')}", "Accept": "application/x-ndjson"}
    writer = {"Authorization": f"Bearer {make_key(database_url, 'writer', '--scope', 'events:write')}"}
    with (
        serving(tmp_path, "--port", 0, database_url=database_url, auth="required") as service,
        service.client() as other,
        service.client() as client,
        client.stream("GET", "/v1/changes?after=now", headers=follower) as stream,
    ):
        lines = stream.iter_lines()
        assert json.loads(next(lines))["kind"] == "bookmark"
        assert pqs("keys", "revoke", "follower", database_url=database_url).returncode == 0
        until(lambda: other.get(ENTITY, headers=follower).status_code == 401, "the revocation holds")
        sent = other.post("/v1/events", json=event_json("registration.initiated", 1), headers=writer)
        assert sent.json()["outcome"] == "applied"
        assert list(lines) == []


def seen(secrets: dict[str, str], *texts: str) -> set[str]:
    """The names of the secrets that a text shows, or the command line of any process."""
    everything = "\n".join([*texts, *command_lines()])
    return {name for name, secret in secrets.items() if secret in everything}


@pytest.mark.parametrize("form", ["value", "file"])
async def test_no_secret_is_seen_anywhere(tmp_path: Path, database_url: str, form: str) -> None:
    """Neither in the log at debug, nor in a process list, nor in an answer, while Kafka and Consul cannot be reached
    and their errors are logged."""
    words = ("database", "replica", "kafka", "options", "consul")
    secrets = {word: f"hunter2-{word}" for word in words}
    local = urlsplit(database_url)
    user, _, place = local.netloc.rpartition("@")

    def address(password: str) -> str:
        netloc = f"{user.partition(':')[0] or 'postgres'}:{password}@{place}"
        return urlunsplit(local._replace(netloc=netloc))

    values = {
        "database_url": address(secrets["database"]),
        "database_read_url": address(secrets["replica"]),
        "kafka_password": secrets["kafka"],
        "kafka_options": f"ssl.key.password={secrets['options']},socket.timeout.ms=1000",
        "consul_token": secrets["consul"],
    }
    if form == "file":
        for name, value in values.items():
            (tmp_path / name).write_text(value + "\n")
        values = {f"{name}_file": str(tmp_path / name) for name in values}
    key = make_key(database_url, "seen", "--scope", "events:write", "--scope", "metrics:read")
    secrets["key"] = key[15 : 15 + SECRET_LENGTH]
    given = values | {
        "auth": "required",
        "log_level": "debug",
        "kafka": "127.0.0.1:1",
        "kafka_security": "sasl_plaintext",
        "kafka_mechanism": "PLAIN",
        "kafka_username": "pqs",
        "consul_url": "http://127.0.0.1:1",
        "workers": 2,
    }
    with serving(tmp_path, **given) as service, service.client() as client:
        header = {"Authorization": f"Bearer {key}"}
        trigger = event_json("node.introspected", 1, data={"node_type": "compute"})
        trigger["domain"] = "registration"
        answers = [client.post("/v1/events", json=trigger, headers=header)]
        until(lambda: "127.0.0.1:1" in service.log, "Kafka or Consul refuses")
        for path in (
            "/readyz",
            "/metrics",
            "/v1/state-counts",
            "/v1/nothing",
            "/v1/audit",
            "/openapi.json",
            "/v1/entities?x",
        ):
            answers += [
                client.get(path, headers=header),
                client.get(path, headers={"Authorization": f"Bearer {key}x"}),
            ]
        shown = [f"{answer.status_code} {answer.headers} {answer.text}" for answer in answers]
        assert answers[0].status_code == 200, answers[0].text
        assert seen(secrets, service.printed, *shown) == set()
    assert seen(secrets, service.log) == set()


@pytest.mark.parametrize("command", ["serve", "consume", "relay", "sweep", "migrate"])
async def test_a_start_that_fails_shows_no_secret(command: str) -> None:
    """Although its database refuses, or its settings do not go together."""
    given = {
        "database_url": "postgresql://u:hunter2-a@127.0.0.1:1/n",
        "kafka_password": "hunter2-b",
        "kafka_options": "ssl.key.password=hunter2-c,acks=0",
        "kafka": "127.0.0.1:1",
        "consul_token": "hunter2-d",
        "topics_in": "nodes",
        "log_level": "debug",
    }
    for more in ({}, {"kafka_username": "u", "kafka_mechanism": "PLAIN", "kafka_security": "sasl_plaintext"}):
        run = pqs(command, **given, **more)
        assert run.returncode != 0
        assert "hunter2" not in run.stdout + run.stderr


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml"])
def test_what_is_deployed_asks_for_keys(file: str) -> None:
    """The image and the compose file listen beyond loopback, so they set the posture `required`."""
    text = (Path(__file__).parents[1] / file).read_text()
    assert re.findall(r"PQS_AUTH[=:] ?(\w+)", text) == ["required"]
