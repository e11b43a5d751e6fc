"""Readers: one polls entities, and one follows the feed of changes."""

import asyncio
import time
from collections.abc import Sequence
from random import Random
from typing import Any
from uuid import UUID

from tests.faults.clients import PAUSE, Client, unanswered
from tests.faults.history import Followed, Page, Seen

PAGE = 500  # changes


class Poller(Client):
    """Reads entities of other clients: the row, its state, several rows, a list, the counts."""

    def __init__(self, entities: Sequence[UUID], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._entities = entities

    async def step(self, dice: Random) -> None:
        """Read something."""
        entity_id, kind = dice.choice(self._entities), dice.random()
        begin = time.monotonic()
        if kind < 0.7:
            answer = await self.ask(dice, "getEntity", "GET", f"/v1/entities/{entity_id}")
            if answer is not None and answer.status_code in {200, 404}:
                version = answer.json()["version"] if answer.status_code == 200 else 0
                self.history.add(Seen(self.name, entity_id, begin, time.monotonic(), version))
        elif kind < 0.8:
            answer = await self.ask(dice, "getEntityState", "GET", f"/v1/entities/{entity_id}/state")
        elif kind < 0.9:
            answer = await self.ask(dice, "listEntities", "GET", "/v1/entities?state=active&limit=50")
        else:
            answer = await self.ask(dice, "countStates", "GET", "/v1/state-counts")
        await asyncio.sleep(PAUSE if unanswered(answer) else dice.uniform(0, 0.05))


class Follower(Client):
    """Follows the changes from the beginning; begins anew if its place is lost."""

    next = "start"
    epoch = 0
    last = 0  # the id of the last change
    caught_up = False

    async def step(self, dice: Random) -> None:
        """Read a page."""
        path = f"/v1/changes?after={self.next}&limit={PAGE}&wait=1"
        begin = time.monotonic()
        answer = await self.ask(dice, "followChanges", "GET", path)
        if answer is not None and answer.status_code == 200:
            page = answer.json()
            if page["items"]:
                ids = tuple(item["id"] for item in page["items"])
                self.history.add(Page(self.name, str(answer.url), begin, page["next"], ids))
            for item in page["items"]:
                self.history.add(
                    Followed(
                        self.name,
                        self.epoch,
                        item["id"],
                        UUID(item["entity_id"]),
                        item["version"],
                        item["type"],
                        item["outcome"],
                        None if item["event_id"] is None else UUID(item["event_id"]),
                    )
                )
            self.next, self.caught_up = page["next"], page["caught_up"]
        elif answer is not None and answer.status_code == 410:
            self.next, self.epoch = "start", self.epoch + 1
        elif not unanswered(answer):
            assert answer is not None
            self.surprised(f"{answer.status_code} for a token of this feed: {answer.text[:500]}")
        if unanswered(answer):
            await asyncio.sleep(PAUSE)
