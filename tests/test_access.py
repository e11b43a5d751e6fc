"""Access as an operator meets it: starts that are refused, keys that end, and secrets that stay secret."""

import asyncio
import json
import re
import shlex
import time
from pathlib import Path

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
