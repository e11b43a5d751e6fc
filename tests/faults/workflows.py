"""Clients of workflows: each reads and commits at random, and sends some commits again."""

import asyncio
import time
from random import Random
from typing import Any

import httpx
from msgspec.structs import replace

from tests.faults.clients import PAUSE, Client
from tests.faults.history import Answered, Worked
from tests.linearizability import Operation, heard, send

OPERATIONS = 40  # on a workflow; then another one is used, so that its history can be checked
WITHOUT_ANSWER = 6  # commits on a workflow without an answer, each of which may have been made or not
WORKFLOWS = 2  # at a time


class Workflows:
    """The workflows that the clients of a campaign share."""

    def __init__(self, seed: str) -> None:
        self._seed, self._made = seed, 0
        self._asked: dict[str, int] = {}
        self._unanswered: dict[str, int] = {}
        self.keys = [self._key() for _ in range(WORKFLOWS)]

    def _key(self) -> str:
        self._made += 1
        return f"{self._seed} {self._made}"

    def count(self, asked: Operation) -> None:
        """Count an operation, and replace its workflow if it has had enough."""
        key = asked.key
        self._asked[key] = self._asked.get(key, 0) + 1
        self._unanswered[key] = self._unanswered.get(key, 0) + (asked.end is None)
        if key in self.keys and (self._asked[key] >= OPERATIONS or self._unanswered[key] >= WITHOUT_ANSWER):
            self.keys[self.keys.index(key)] = self._key()


class Reducer(Client):
    """A client of workflows, which records what it observes."""

    def __init__(self, workflows: Workflows, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._workflows = workflows
        self._versions: dict[str, int] = {}
        self._sent: list[Operation] = []

    async def step(self, dice: Random) -> None:
        """One operation."""
        asked = self._operation(dice)
        if asked.value:
            self._sent = [*self._sent[-3:], asked]
        begin = time.monotonic()
        answered, status, reached = asked, 0, True
        try:
            response = await send(self._http, dice.choice(self._urls), asked)
            status = response.status_code
            answered = heard(asked, response)
        except httpx.ConnectError:
            reached = False
        except httpx.TransportError:
            pass
        except AssertionError as error:
            self.surprised(f"{asked}: {error}")
        end = time.monotonic()
        self.history.add(Answered(self.name, "commitWorkflow" if asked.value else "getWorkflow", begin, end, status))
        done = replace(answered, begin=begin, end=end if answered.answer else None)
        if done.answer or (done.value and reached):  # a read without an answer has no effect
            self.history.add(Worked(done))
            self._workflows.count(done)
        if done.answer in {"row", "committed", "conflict"}:
            self._versions[done.key] = done.version
        await asyncio.sleep(dice.uniform(0, 0.1) if done.answer else PAUSE)

    def _operation(self, dice: Random) -> Operation:
        kind, key = dice.random(), dice.choice(self._workflows.keys)
        again = [each for each in self._sent if each.key in self._workflows.keys]
        if kind < 0.15 and again:
            return dice.choice(again)
        if kind < 0.2 and again:
            return replace(again[-1], value=f"{again[-1].value} other")
        if kind < 0.7:
            value = f"{self.name} {self._number}"
            expected = self._versions.get(key, 0)
            return Operation(key, 0, None, value=value, expected=expected, action=f"action of {value}")
        return Operation(key, 0, None)
