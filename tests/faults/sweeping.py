"""A client whose nodes register, are acknowledged, fall silent, and have to expire once."""

import asyncio
import time
from random import Random
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from tests.faults.clients import PAUSE
from tests.faults.events import Entity, Writer, now, trigger

EXPIRED = "liveness_expired"
WITHIN = 60.0  # seconds of faults


class Silent(Writer):
    """Sends the triggers of one node after the other; the last heartbeat's deadline has passed already."""

    triggers = True
    _nodes = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.entities = []

    async def step(self, dice: Random) -> None:
        """Let one node live and expire."""
        self._nodes += 1
        entity = Entity(uuid5(NAMESPACE_URL, f"{self.seed} {self.name} node {self._nodes}"))
        for _ in range(2):
            if not await self.send(dice, trigger(entity, dice)):
                return
        beat = trigger(entity, Random(0))
        assert beat["type"] == "node.heartbeat"
        if not await self.send(dice, beat | {"data": {"liveness_deadline": now()}}):
            return
        end = time.monotonic() + WITHIN
        while time.monotonic() < end:
            answer = await self.ask(dice, "getEntityState", "GET", f"/v1/entities/{entity.id}/state")
            if answer is not None and answer.status_code == 200 and answer.json()["current_state"] == EXPIRED:
                return
            await asyncio.sleep(PAUSE)
        self.surprised(f"node {entity.id} did not expire within {WITHIN:.0f} s")
