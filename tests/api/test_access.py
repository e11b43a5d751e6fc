"""Rights to make calls: every operation of the document with every kind of caller, on both paths of the service."""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app import main
from app.access.keys import make
from app.access.principals import Principal, Scope
from app.access.refusals import LimitedError
from app.api.entry import OPEN_PATHS
from app.api.openapi.access import declared
from app.settings import read_settings
from app.store import keys
from app.store.database import Database
from tests.access.making import change, new_key
from tests.api.test_openapi import document, operations
from tests.databases import new_database
from tests.making import NODE, Json, event_json, life, node

EVERYTHING: Json = {"scopes": tuple(Scope), "domains": ("*",), "prefixes": ("",), "rate": None, "burst": None}
NDJSON = "application/x-ndjson"
COMMIT = {"state": {"n": 1}, "provenance": {"effect_id": "e", "timestamp": "2026-01-01T00:00:00Z"}}
# Requests of the operations that need more than their path.
ASKED: dict[str, Json] = {
    "postEvents": {"json": event_json("node.heartbeat", 90, data={})},
    "lookupEntities": {"json": {"entity_ids": [str(NODE)]}},
    "commitWorkflow": {"json": COMMIT, "headers": {"If-Match": '"1"'}},
}
ACTS = {"forgetEntity", "deregisterEntity"}  # which would end the entity of the other calls
FILLED = {"{entity_id}": str(NODE), "{workflow_key}": "team/1", "{id}": "1", "{event_id}": str(NODE)}
REFUSED_AS = {"none": 401, "mistyped": 401, "unknown": 401, "expired": 401, "revoked": 401}
CALLERS = (*REFUSED_AS, "wrong scope", "wrong reach", "right")
# What lies outside of the reach of a key with the wrong one is left out of this list; the call itself is allowed.
FILTERED = {"listWorkflows", "listDomains", "getEvent"}


@dataclass
class Guarded:
    """A service that requires keys, and the keys."""

    url: str
    app: main.Application
    hot: httpx.AsyncClient
    usual: httpx.AsyncClient
    keys: dict[str, str]


@pytest.fixture(scope="module")
async def guarded() -> AsyncIterator[Guarded]:
    """A service in the posture `required`, with one entity, one workflow, and a key for each kind of caller."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
        known = {"everything": await new_key(database, "everything", **EVERYTHING)}
        known["expired"] = await new_key(database, "expired", **EVERYTHING, lasts=timedelta(seconds=-1))
        revoked = known["revoked"] = await new_key(database, "revoked", **EVERYTHING)
        await change(database, lambda connection: keys.revoke(connection, [revoked.id]))
        for scope in Scope:
            others = tuple(each for each in Scope if each is not scope)
            known[f"wrong scope {scope}"] = await new_key(database, "others", **EVERYTHING | {"scopes": others})
            only = EVERYTHING | {"scopes": (scope,)}
            known[f"right {scope}"] = await new_key(database, "right", **only)
            elsewhere = only | {"domains": ("elsewhere",), "prefixes": ("other/",)}
            known[f"wrong reach {scope}"] = await new_key(database, "elsewhere", **elsewhere)
        known["slow"] = await new_key(database, "slow", **EVERYTHING | {"rate": 0.001, "burst": 2.0})
        known["team"] = await new_key(
            database, "team", **EVERYTHING | {"domains": ("registration",), "prefixes": ("team/",)}
        )
        await database.close()
        app = main.create_app(
            read_settings({"database_url": url, "pool_size": 4, "auth": "required", "access_log": "all"})
        )
        assert isinstance(app, main.Application)
        async with app.router.lifespan_context(app):
            hot = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
            usual = httpx.AsyncClient(transport=httpx.ASGITransport(app.routed), base_url="http://localhost")
            texts = {name: key.text for name, key in known.items()}
            texts["unknown"] = unknown_key()
            texts["mistyped"] = texts["everything"][:-1] + ("0" if texts["everything"][-1] != "0" else "1")
            service = Guarded(url, app, hot, usual, texts)
            first = await hot.post("/v1/events", json=life(), headers=bearer(service, "everything"))
            assert first.status_code == 200, first.text
            for key in ("team/1", "other/1"):
                made = await hot.put(
                    f"/v1/workflows/{key}",
                    json=COMMIT,
                    headers=bearer(service, "everything") | {"If-None-Match": "*"},
                )
                assert made.status_code == 201, made.text
            yield service


def unknown_key() -> str:
    """A well-formed key that the service never issued."""
    return make(bytes).text


def bearer(service: Guarded, name: str) -> dict[str, str]:
    """The header of a caller that sends this key."""
    return {"Authorization": f"Bearer {service.keys[name]}"}


OPERATIONS = {
    operation["operationId"]: (path, method, operation) for path, method, operation in operations(document())
}


def needed(operation: Json) -> str | None:
    """The scope that the document names for an operation; None for an open one."""
    security = operation["security"]
    if not security:
        return None
    [[scope]] = [next(iter(each.values())) for each in security if "key" in each][:1]
    return str(scope)


def expected(operation: Json, caller: str) -> int | None:
    """The status that the document promises this caller; None if the caller is let in."""
    scope = needed(operation)
    if scope is None or caller == "right":
        return None
    if caller == "wrong scope":
        return 403
    if caller == "wrong reach":
        has_reach = not scope.startswith("metrics") and operation["operationId"] not in FILTERED
        return 403 if has_reach else None
    return REFUSED_AS[caller]


@pytest.mark.parametrize("way", ["hot", "usual"])
@pytest.mark.parametrize("operation_id", sorted(OPERATIONS))
async def test_a_call_is_for_those_with_its_right(guarded: Guarded, operation_id: str, way: str) -> None:
    """Each kind of caller gets the status that follows from the call's declared scope, worded as in the contract."""
    path, method, operation = OPERATIONS[operation_id]
    if operation_id in ACTS:
        path = path.replace("{entity_id}", str(node(99)))
    for placeholder, value in FILLED.items():
        path = path.replace(placeholder, value)
    asked = ASKED.get(operation_id, {})
    client: httpx.AsyncClient = getattr(guarded, way)
    scope = needed(operation)
    for caller in CALLERS:
        name = caller if caller in REFUSED_AS else f"{caller} {scope or Scope.METRICS_READ}"
        headers = {} if caller == "none" else bearer(guarded, name)
        answer = await client.request(method.upper(), path, **asked | {"headers": asked.get("headers", {}) | headers})
        status = expected(operation, caller)
        if status is None:
            assert answer.status_code not in {401, 403, 429, 500}, (caller, answer.text)
            continue
        assert answer.status_code == status, (caller, answer.text)
        check_refusal(answer, caller, scope)


def check_refusal(answer: httpx.Response, caller: str, scope: str | None) -> None:
    """Check that a refusal is worded as RFC 6750 and the contract require."""
    problem = answer.json()
    said = answer.headers["www-authenticate"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-correlation-id"]
    if answer.status_code == 401:
        assert (problem["type"], problem["title"]) == ("urn:pqs:problem:unauthenticated", "Unauthenticated")
        token = "" if caller == "none" else ', error="invalid_token"'
        assert said == f'Bearer realm="pqs"{token}'
    else:
        assert (problem["type"], problem["title"]) == ("urn:pqs:problem:forbidden", "Forbidden")
        assert said == f'Bearer realm="pqs", error="insufficient_scope", scope="{scope}"'


def test_every_route_declares_what_it_needs(guarded: Guarded) -> None:
    """Each route declares exactly one scope; the routes without a scope are exactly the open paths of the guard."""
    found = {route.path_format: needs for route, needs in declared(guarded.app)}
    assert [path for path, needs in found.items() if len(needs) != 1] == []
    assert {path for path, [needs] in found.items() if needs.scope is None} == OPEN_PATHS


def test_the_document_names_the_schemes() -> None:
    """The document lists the security scheme for keys and, where an issuer is set, the one of OpenID Connect too."""
    assert list(document()["components"]["securitySchemes"]) == ["key"]
    with_issuer = read_settings(
        {"database_url": "postgresql:///", "oidc_issuer": "https://id.example/realm", "oidc_audience": "pqs"}
    )
    spec = main.create_app(with_issuer).openapi()
    url = "https://id.example/realm/.well-known/openid-configuration"
    assert spec["components"]["securitySchemes"]["oidc"] == {"type": "openIdConnect", "openIdConnectUrl": url}
    assert spec["paths"]["/v1/events"]["post"]["security"] == [{"key": ["events:write"]}, {"oidc": ["events:write"]}]


@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/nothing", "/v1/entities/lookup"])
async def test_what_is_no_operation_needs_a_caller(guarded: Guarded, path: str) -> None:
    """Pages and unknown paths require a valid key, whatever its scopes."""
    assert (await guarded.hot.get(path)).status_code == 401
    key = bearer(guarded, "right entities:read")
    assert (await guarded.hot.get(path, headers=key)).status_code in {200, 404, 405}


async def test_readiness_is_told_bare(guarded: Guarded) -> None:
    """Everybody learns whether the service is ready; only operators see the revision. Invalid keys change nothing."""
    assert (await guarded.hot.get("/readyz")).json() == {"status": "ready"}
    assert (await guarded.hot.get("/readyz", headers=bearer(guarded, "unknown"))).json() == {"status": "ready"}
    told = await guarded.hot.get("/readyz", headers=bearer(guarded, "right operations:read"))
    assert set(told.json()) == {"status", "revision"}


async def test_a_token_in_the_query_is_refused(guarded: Guarded) -> None:
    """A token in the query string never counts, even beside a valid key: URLs are written to logs."""
    url = f"/v1/state-counts?access_token={guarded.keys['everything']}"
    answer = await guarded.hot.get(url, headers=bearer(guarded, "everything"))
    assert answer.status_code == 401
    assert guarded.keys["everything"] not in answer.text


async def test_two_authorizations_are_refused(guarded: Guarded) -> None:
    """A request with two Authorization fields is refused, as it is unclear which one counts."""
    one = ("Authorization", f"Bearer {guarded.keys['everything']}")
    for client in (guarded.hot, guarded.usual):
        assert (await client.get(f"/v1/entities/{NODE}", headers=[one, one])).status_code == 401


ELSEWHERE = [
    event_json("registration.initiated", 1, entity_id=node(7)),
    event_json("registration.initiated", 1, entity_id=node(7), domain="elsewhere"),
]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("way", ["hot", "usual"])
async def test_an_array_of_foreign_domains_is_refused_whole(guarded: Guarded, way: str, dry_run: bool) -> None:
    """An array with one event of a foreign domain gets 403 with that event's pointer, and no event is applied."""
    client: httpx.AsyncClient = getattr(guarded, way)
    url = "/v1/events" + ("?dry_run=true" if dry_run else "")
    answer = await client.post(url, json=ELSEWHERE, headers=bearer(guarded, "team"))
    assert answer.status_code == 403
    assert [fault["pointer"] for fault in answer.json()["errors"]] == ["#/1/domain"]
    row = await client.get(f"/v1/entities/{node(7)}", headers=bearer(guarded, "everything"))
    assert row.status_code == 404


async def test_a_line_of_a_foreign_domain_is_left_out(guarded: Guarded) -> None:
    """In a stream, a line of a foreign domain has the outcome `forbidden`; the other lines are applied."""
    events = [each | {"entity_id": str(node(8))} for each in ELSEWHERE]
    lines = "".join(json.dumps(each) + "\n" for each in events)
    headers = bearer(guarded, "team") | {"Content-Type": NDJSON}
    answer = await guarded.hot.post("/v1/events", content=lines, headers=headers)
    line, summary = [json.loads(each) for each in answer.text.splitlines()]
    assert (line["line"], line["outcome"], line["errors"][0]["pointer"]) == (2, "forbidden", "#/domain")
    assert (summary["summary"]["applied"], summary["summary"]["forbidden"]) == (1, 1)
    key = bearer(guarded, "everything")
    assert (await guarded.hot.get(f"/v1/entities/{node(8)}?domain=elsewhere", headers=key)).status_code == 404


def cloudevent(domain: str) -> Json:
    """A CloudEvent of that domain."""
    return {
        "specversion": "1.0",
        "id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1e01",
        "source": "/test",
        "type": "registration.initiated",
        "subject": str(node(9)),
        "time": "2026-01-01T00:00:00Z",
        "sequence": "1",
        "domain": domain,
        "data": {"node_type": "compute"},
    }


@pytest.mark.parametrize("mode", ["structured", "batch", "binary"])
async def test_a_cloudevent_of_a_foreign_domain_is_refused(guarded: Guarded, mode: str) -> None:
    """A CloudEvent of a foreign domain is refused in each mode of CloudEvents."""
    event = cloudevent("elsewhere")
    body: Any = event
    headers = {"Content-Type": "application/cloudevents+json"}
    if mode == "batch":
        body, headers = [event], {"Content-Type": "application/cloudevents-batch+json"}
    if mode == "binary":
        headers = {f"ce-{name}": str(value) for name, value in event.items() if name != "data"}
        body = event["data"]
        headers["Content-Type"] = "application/json"
    content = json.dumps(body)
    answer = await guarded.hot.post("/v1/events", content=content, headers=headers | bearer(guarded, "team"))
    assert answer.status_code == 403, answer.text
    allowed = await guarded.hot.post(
        "/v1/events?dry_run=true", content=content, headers=headers | bearer(guarded, "everything")
    )
    assert allowed.status_code == 200, allowed.text


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/entities/{NODE}",
        f"/v1/entities/{NODE}/state",
        "/v1/entities",
        "/v1/entities?cursor=damaged",
        "/v1/state-counts",
        "/v1/overdue/ack",
        "/v1/overdue/liveness",
    ],
)
async def test_a_foreign_domain_is_not_read(guarded: Guarded, path: str) -> None:
    """A read of a foreign domain gets 403 whether or not the domain holds rows, and before its cursor is checked."""
    sign = "&" if "?" in path else "?"
    for domain in ("elsewhere", "nowhere"):
        answer = await guarded.hot.get(f"{path}{sign}domain={domain}", headers=bearer(guarded, "team"))
        assert answer.status_code == 403, answer.text
    found = await guarded.hot.get(f"{path}{sign}domain=registration", headers=bearer(guarded, "team"))
    assert found.status_code in {200, 400}


async def test_a_list_of_workflows_has_those_of_the_prefixes(guarded: Guarded) -> None:
    """A caller finds only the workflows of its own prefixes in the list, page by page."""

    async def listed(name: str) -> list[str]:
        path, found = "/v1/workflows?limit=1", []
        while path:
            page = (await guarded.hot.get(path, headers=bearer(guarded, name))).json()
            found += [each["workflow_key"] for each in page["items"]]
            path = page["next_cursor"] and f"/v1/workflows?limit=1&cursor={page['next_cursor']}"
        return found

    assert set(await listed("everything")) == {"team/1", "other/1"}
    assert await listed("team") == ["team/1"]


@pytest.mark.parametrize("way", ["hot", "usual"])
async def test_a_fast_caller_is_told_to_wait(way: str) -> None:
    """Past its burst a caller gets 429 with the wait and its limit. Arrays and lookups cost by their size."""
    async with new_database() as url:
        database = Database(url, pool_size=1, statement_timeout=timedelta(seconds=5))
        slow = EVERYTHING | {"rate": 0.001, "burst": 2.0}
        key = (await new_key(database, "slow", **slow)).text
        await database.close()
        app = main.create_app(read_settings({"database_url": url, "pool_size": 2, "auth": "required"}))
        assert isinstance(app, main.Application)
        async with app.router.lifespan_context(app):
            inner = app if way == "hot" else app.routed
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(inner),
                base_url="http://localhost",
                headers={"Authorization": f"Bearer {key}"},
            ) as client:
                statuses = [(await client.get(f"/v1/entities/{NODE}")).status_code for _ in range(2)]
                assert statuses == [404, 404]
                for answer in (
                    await client.get(f"/v1/entities/{NODE}"),
                    await client.post("/v1/events", json=life()),
                    await client.post("/v1/entities/lookup", json={"entity_ids": [str(NODE)]}),
                ):
                    assert answer.status_code == 429, answer.text
                    assert answer.json()["type"] == "urn:pqs:problem:rate-limited"
                    assert int(answer.headers["retry-after"]) > 900
                    assert answer.headers["ratelimit"].startswith('"principal";r=0;t=')
                    assert answer.headers["ratelimit-policy"] == '"principal";q=2;w=2000'


WEIGHTS: list[tuple[str, str, Json, float]] = [
    ("GET", f"/v1/entities/{NODE}", {}, 1),
    ("GET", "/v1/entities", {}, 1),
    ("GET", "/v1/entities?state=active&limit=1000", {}, 1),
    ("GET", "/v1/entities?node_type=compute", {}, 20),
    ("GET", "/v1/entities?updated_before=2026-01-01T00:00:00Z", {}, 20),
    ("GET", "/v1/entities?state=active&updated_before=2026-01-01T00:00:00Z", {}, 1),
    ("GET", "/v1/entities?capability=a", {}, 20),
    ("GET", "/v1/entities?updated_since=2026-01-01T00:00:00Z", {}, 20),
    ("GET", "/v1/entities?id_prefix=3a", {}, 1),
    ("GET", "/v1/overview", {}, 1),
    ("GET", "/v1/domains", {}, 1),
    ("GET", "/v1/workflows", {}, 1),
    ("GET", "/v1/workflows?order=newest", {}, 1),
    ("GET", "/v1/workflows?order=key&key_prefix=team", {}, 1),
    ("GET", "/v1/workflows?order=newest&key_prefix=team", {}, 20),
    ("GET", "/v1/overdue/ack", {}, 1),
    ("GET", "/v1/audit", {}, 1),
    *[
        ("POST", "/v1/entities/lookup", {"json": {"entity_ids": [str(node(i)) for i in range(n)]}}, w)
        for n, w in ((1, 1), (100, 1), (250, 2.5), (1000, 10))
    ],
    *[("POST", "/v1/events", {"json": life(entity_id=node(70)) * n}, w) for n, w in ((1, 1), (100, 5))],
    *[("POST", "/v1/events?dry_run=true", {"json": life(entity_id=node(71)) * n}, w) for n, w in ((1, 1), (100, 5))],
    ("POST", "/v1/events", {"json": life()[0]}, 1),
]


@pytest.mark.parametrize(("method", "path", "more", "weight"), WEIGHTS)
async def test_a_call_weighs_what_it_costs(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, method: str, path: str, more: Json, weight: float
) -> None:
    """A point call or an indexed list costs one unit, an array or a lookup its size, a full scan 20."""
    limits = guarded.app.state.service.access.limits
    taken: list[float] = []
    take = limits.take

    def watched(principal: Principal, weight: float = 1.0) -> LimitedError | None:
        taken.append(weight)
        limited: LimitedError | None = take(principal, weight)
        return limited

    monkeypatch.setattr(limits, "take", watched)
    for client in (guarded.hot, guarded.usual):
        taken.clear()
        answer = await client.request(method, path, headers=bearer(guarded, "everything"), **more)
        assert answer.status_code == 200, answer.text
        assert taken == [weight]


async def test_a_list_of_some_prefixes_weighs_as_a_walk(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of workflows by prefixes costs as much as a full scan: it may read many more rows than it returns."""
    limits = guarded.app.state.service.access.limits
    taken: list[float] = []
    monkeypatch.setattr(limits, "take", lambda _principal, weight=1.0: taken.append(weight))
    assert (await guarded.hot.get("/v1/workflows", headers=bearer(guarded, "team"))).status_code == 200
    assert taken == [20]


async def test_an_overview_tells_of_the_service_to_operators(guarded: Guarded) -> None:
    """Only callers with `operations:read` for all domains are told the state of the service."""
    for name, is_told in (("everything", True), ("right entities:read", False), ("team", False)):
        answer = await guarded.hot.get("/v1/overview", headers=bearer(guarded, name))
        assert answer.status_code == 200, answer.text
        assert (answer.json()["operations"] is not None) is is_told


async def test_domains_are_those_that_the_caller_may_read(guarded: Guarded) -> None:
    """A key of some domains is answered those that have entities, page by page."""
    event = event_json("registration.initiated", 1, entity_id=node(60), domain="a first one")
    await guarded.hot.post("/v1/events", json=event, headers=bearer(guarded, "everything"))
    for name, wanted in (
        ("everything", ["a first one", "registration"]),
        ("team", ["registration"]),
        ("wrong reach entities:read", []),
    ):
        page = await guarded.hot.get("/v1/domains", headers=bearer(guarded, name))
        found = [each["domain"] for each in page.json()["items"]]
        assert [each for each in found if each in {"a first one", "registration"}] == wanted
        assert (found == wanted) or name == "everything"


async def test_a_proxy_in_front_is_refused_on_loopback(shared: httpx.AsyncClient) -> None:
    """A service in the posture `loopback` refuses requests through a proxy, on hot paths and all others."""
    for path in (f"/v1/entities/{NODE}", "/livez", "/nothing"):
        for name in ("X-Forwarded-For", "Forwarded", "X-Forwarded-Proto"):
            answer = await shared.get(path, headers={name: "192.0.2.1"})
            assert answer.status_code == 403, path
            assert answer.json()["type"] == "urn:pqs:problem:forbidden"


@pytest.mark.parametrize(
    ("server", "client"),
    [("192.0.2.7", "192.0.2.1"), ("::", "::1"), ("127.0.0.1", "192.0.2.1"), ("10.1.1.1", "10.1.1.1")],
)
async def test_no_server_opens_a_trusting_service_to_others(database_url: str, server: str, client: str) -> None:
    """Other ASGI servers than our own may listen on any address. Where no key is required, requests from other
    machines get 403 on every path, hot or not."""
    app = main.create_app(read_settings({"database_url": database_url, "pool_size": 1}))

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        scope["server"] = (server, 8000)
        await app(scope, receive, send)

    async with app.router.lifespan_context(app):
        for inner, statuses in ((reached, {403}), (app, {200, 404})):
            transport = httpx.ASGITransport(inner, client=(client if inner is reached else "127.0.0.1", 9))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as asking:
                for path in (f"/v1/entities/{NODE}", "/v1/entities", "/livez", "/nothing"):
                    answer = await asking.get(path)
                    assert answer.status_code in statuses, (path, answer.text)


async def test_a_proxy_in_front_is_welcome_where_keys_are_asked_for(guarded: Guarded) -> None:
    """Where keys are required, requests through a proxy are accepted."""
    headers = bearer(guarded, "everything") | {"X-Forwarded-For": "192.0.2.1"}
    assert (await guarded.hot.get(f"/v1/entities/{NODE}", headers=headers)).status_code == 200


async def test_no_secret_is_logged_or_answered(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """Even at debug level, neither the log nor an answer has any part of a secret; the log has the caller's name."""
    with caplog.at_level(logging.DEBUG):
        for name in ("everything", "mistyped", "unknown", "expired", "revoked", "wrong scope entities:read"):
            for client in (guarded.hot, guarded.usual):
                answer = await client.get(f"/v1/entities/{NODE}", headers=bearer(guarded, name))
                assert secret_of(guarded.keys[name]) not in answer.text + str(answer.headers)
    lines = "\n".join(str(vars(record)) for record in caplog.records)
    assert [name for name, key in guarded.keys.items() if secret_of(key) in lines] == []
    assert "key:everything/" in lines


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", f"/v1/entities/{NODE}", None), ("POST", "/v1/events", life()[0]), ("GET", "/v1/workflows/team/1", None)],
)
async def test_the_log_has_caller_and_peer(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, method: str, path: str, body: Json | None
) -> None:
    """The access log names the caller and its address, for hot calls and for all others."""
    for client in (guarded.hot, guarded.usual):
        caplog.clear()
        with caplog.at_level(logging.INFO, "app.access"):
            await client.request(method, path, json=body, headers=bearer(guarded, "everything"))
        [record] = [each for each in caplog.records if each.name == "app.access"]
        found = vars(record)
        assert (found["peer"], found["principal"].partition("/")[0]) == ("127.0.0.1", "key:everything")
        assert record.getMessage().endswith(" 127.0.0.1")


def secret_of(key: str) -> str:
    """The secret part of a key."""
    return key[15:58]


async def test_a_preflight_needs_no_key(guarded: Guarded) -> None:
    """Browsers send preflights without a key: OPTIONS is answered without one, and tells only the methods."""
    answer = await guarded.hot.options("/v1/events")
    assert (answer.status_code, answer.headers["allow"]) == (204, "OPTIONS, POST")


async def test_acts_are_in_the_audit_log(guarded: Guarded) -> None:
    """Each retry or removal of a dead letter is in the audit log with its caller, and the log is read in pages."""
    database = Database(guarded.url, pool_size=1, statement_timeout=timedelta(seconds=5))
    pool = guarded.app.state.service.database
    await database.close()

    async def fill(connection: Any) -> None:
        for offset in (1, 2):
            await connection.execute(
                'INSERT INTO dead_letters (source, topic, partition, "offset", key, value, headers, error)'
                " VALUES ('consumer', 'nodes', 0, $1, NULL, $2, '[]', 'early')",
                offset,
                json.dumps(event_json("registration.initiated", 1, entity_id=node(offset + 20))).encode(),
            )

    await pool.write(fill)
    key = bearer(guarded, "everything") | {"X-Correlation-ID": "a-test"}
    first, second = [each["id"] for each in (await guarded.hot.get("/v1/dead-letters", headers=key)).json()["items"]][
        -2:
    ]
    assert (await guarded.hot.post(f"/v1/dead-letters/{first}/retry", headers=key)).status_code == 200
    assert (await guarded.hot.delete(f"/v1/dead-letters/{second}", headers=key)).status_code == 204
    assert (await guarded.hot.delete(f"/v1/dead-letters/{second}", headers=key)).status_code == 404
    page = (await guarded.hot.get("/v1/audit?limit=1", headers=key)).json()
    rest = (await guarded.hot.get(f"/v1/audit?cursor={page['next_cursor']}", headers=key)).json()
    found = [*page["items"], *rest["items"]][:2]
    assert [(each["action"], each["target"], each["outcome"]) for each in found] == [
        ("dead-letters.delete", f"dead letter {second}", "done"),
        ("dead-letters.retry", f"dead letter {first}", "applied"),
    ]
    assert {each["principal"].partition("/")[0] for each in found} == {"key:everything"}
    assert {(each["correlation_id"], each["peer"]) for each in found} == {("a-test", "127.0.0.1")}
