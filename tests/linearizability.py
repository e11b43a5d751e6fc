"""A check that clients' observations of one workflow are linearizable; and a client that records its observations.

The check is that of Wing and Gong (Testing and Verifying Concurrent Objects, 1993), with Lowe's memory of attempts
(Testing for Linearizability, 2017): each operation takes effect at one moment between its call and its answer, and
every answer is the one that a single workflow gives at that moment. An operation without an answer may have taken
effect at any moment after its call, or never.

As a program it is such a client: `python -m tests.linearizability SEED CLIENTS OPERATIONS KEYS URL…` sends random
requests to services, and prints its observations, one line for each operation.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from math import inf
from random import Random
from typing import NamedTuple

import httpx
import msgspec
from msgspec import Struct

PATIENCE = 20.0  # seconds until an answer counts as missing

Actions = frozenset[tuple[str, int, str]]  # action id, the version that it made, and its value


class Operation(Struct, frozen=True):
    """A client's request to a workflow, and the answer.

    A read has no `value`; a commit writes `value` where the workflow is at `expected`, 0 for no row. `answer` is one
    of `row`, `committed`, `replayed`, `conflict` (with `version` and `seen`, the row of the answer: 0 and "" for
    none), `refused` (the action was applied with another value, as `version`), and "" when none came.
    """

    key: str
    begin: float  # seconds, of a clock that all processes share
    end: float | None  # None: no answer came
    value: str = ""
    expected: int = 0
    action: str = ""
    answer: str = ""
    version: int = 0
    seen: str = ""


class _Workflow(NamedTuple):
    """A workflow's content at one moment."""

    version: int = 0
    value: str = ""
    actions: Actions = frozenset()


def _after(workflow: _Workflow, asked: Operation) -> _Workflow | None:
    """The workflow after the operation; None if it would answer otherwise, or change nothing without an answer."""
    applied = next((each for each in workflow.actions if each[0] == asked.action), None) if asked.action else None
    after = workflow
    if not asked.value:
        answer = ("row", workflow.version, workflow.value)
    elif applied is not None:
        _, version, value = applied
        answer = ("replayed", version, value) if value == asked.value else ("refused", version, "")
    elif workflow.version != asked.expected:
        answer = ("conflict", workflow.version, workflow.value)
    else:
        version = workflow.version + 1
        actions = workflow.actions | {(asked.action, version, asked.value)} if asked.action else workflow.actions
        after = _Workflow(version, asked.value, actions)
        answer = ("committed", version, asked.value)
    if asked.end is None:
        return after if after is not workflow else None
    return after if answer == (asked.answer, asked.version, asked.seen) else None


def violation(history: Sequence[Operation]) -> Operation | None:
    """None if a single workflow, at first without a row, could have given all these answers, each in its time.

    Otherwise the operation at which the attempt that came furthest ends.
    """
    operations = sorted(history, key=lambda each: each.begin)
    wanted = sum(1 << place for place, each in enumerate(operations) if each.end is not None)
    tried = set()
    furthest, stuck = -1, None
    ways: list[tuple[int, _Workflow, Iterator[int]]] = [(0, _Workflow(), _next(operations, 0))]
    while ways:
        done, workflow, candidates = ways[-1]
        if done & wanted == wanted:
            return None
        if done.bit_count() > furthest:
            missing = (each for place, each in enumerate(operations) if wanted >> place & 1 and not done >> place & 1)
            furthest, stuck = done.bit_count(), min(missing, key=lambda each: each.end or inf)
        place = next(candidates, None)
        if place is None:
            ways.pop()
            continue
        after = _after(workflow, operations[place])
        way = (done | 1 << place, after)
        if after is not None and way not in tried:
            tried.add(way)
            ways.append((way[0], after, _next(operations, way[0])))
    return stuck


def _next(operations: Sequence[Operation], done: int) -> Iterator[int]:
    """The operations that may come next: those called before any other one was answered."""
    earliest_end = inf
    places = []
    first = (~done & (done + 1)).bit_length() - 1  # the lowest place that is not done
    for place in range(first, len(operations)):
        if done >> place & 1:
            continue
        if operations[place].begin > earliest_end:
            break
        places.append(place)
        earliest_end = min(earliest_end, operations[place].end or inf)
    return iter(places)


# --- A client that writes down what it saw -------------------------------------------------------------------------


async def record(urls: Sequence[str], keys: Sequence[str], name: str, count: int) -> list[Operation]:
    """One client's observations in this many operations, which are random apart from other clients' effects.

    Every commit has an action; some are sent again, unchanged or with another value. A service that refuses
    connections is no longer used.
    """
    random = Random(name)
    seen: list[Operation] = []
    sent: list[Operation] = []
    versions = dict.fromkeys(keys, 0)
    open_urls = list(urls)
    async with httpx.AsyncClient(timeout=PATIENCE) as client:
        for number in itertools.count():
            if len(seen) == count or not open_urls:
                return seen
            key, url = random.choice(keys), random.choice(open_urls)
            asked = Operation(key, 0, None)
            kind = random.random()
            if kind < 0.15 and sent:
                asked = random.choice(sent[-3:])
            elif kind < 0.2 and sent:
                asked = msgspec.structs.replace(sent[-1], value=f"{name} {number} other")
            elif kind < 0.7:
                value = f"{name} {number}"
                asked = Operation(key, 0, None, value=value, expected=versions[key], action=f"action of {value}")
            if asked.value:
                sent.append(asked)
            begin = time.monotonic()
            try:
                answered = heard(asked, await send(client, url, asked))
            except httpx.ConnectError:
                open_urls.remove(url)  # it has not seen the request
                continue
            except httpx.TransportError:
                answered = asked
            end = time.monotonic() if answered.answer else None
            seen.append(msgspec.structs.replace(answered, begin=begin, end=end))
            if answered.answer in {"row", "committed", "conflict"}:
                versions[answered.key] = answered.version
    raise AssertionError


async def send(client: httpx.AsyncClient, url: str, asked: Operation) -> httpx.Response:
    """Send the request of an operation."""
    path = f"{url}/v1/workflows/{asked.key}"
    if not asked.value:
        return await client.get(path)
    headers = {"If-Match": f'"{asked.expected}"'} if asked.expected else {"If-None-Match": "*"}
    provenance = {"effect_id": "recorded", "timestamp": "2026-01-01T00:00:00Z", "action_id": asked.action}
    return await client.put(path, json={"state": {"value": asked.value}, "provenance": provenance}, headers=headers)


def heard(asked: Operation, response: httpx.Response) -> Operation:
    """The operation with its answer; without an answer if the service cannot give one."""
    if response.status_code == 503:
        return asked
    answer, row = "conflict", response.json()
    match response.status_code:
        case 200 | 201:
            replayed = "idempotency-replayed" in response.headers
            answer = ("replayed" if replayed else "committed") if asked.value else "row"
        case 404:
            answer, row = "row", None
        case 412:
            row = row["current"]
        case 409:
            return msgspec.structs.replace(asked, answer="refused", version=row["version"])
        case status:
            raise AssertionError(f"{status}: {response.text}")
    if row is None:
        return msgspec.structs.replace(asked, answer=answer)
    return msgspec.structs.replace(asked, answer=answer, version=row["version"], seen=row["state"]["value"])


async def _main(seed: str, clients: str, count: str, keys: str, *urls: str) -> None:
    names = [f"key {number}" for number in range(int(keys))]
    seen = await asyncio.gather(
        *(record(urls, names, f"{seed} {client}", int(count)) for client in range(int(clients)))
    )
    for operation in itertools.chain.from_iterable(seen):
        sys.stdout.write(msgspec.json.encode(operation).decode() + "\n")


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
