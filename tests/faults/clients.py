"""Clients of a campaign: requests of bounded patience, each recorded, to services that may be down."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from random import Random

import httpx

from tests.faults.history import Answered, History, Surprise

PATIENCE = 10.0  # seconds for an answer
PAUSE = 0.1  # seconds until a request without an answer is sent again


class Client:
    """A client whose choices depend only on the seed, on its name, and on the number of the choice."""

    def __init__(self, name: str, seed: str, http: httpx.AsyncClient, urls: Sequence[str], history: History) -> None:
        self.name, self.history, self.seed = name, history, seed
        self._http, self._urls = http, urls
        self._number = 0

    def dice(self) -> Random:
        """The dice of the next step."""
        self._number += 1
        return Random(f"{self.seed} {self.name} {self._number}")

    async def ask(
        self,
        dice: Random,
        call: str,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response | None:
        """Send a request to one of the services, and record the status; None if no answer came."""
        begin = time.monotonic()
        answer: httpx.Response | None = None
        try:
            url = f"{dice.choice(self._urls)}{path}"
            answer = await self._http.request(method, url, content=content, headers=headers, timeout=PATIENCE)
        except httpx.TransportError:
            pass
        status = 0 if answer is None else answer.status_code
        self.history.add(Answered(self.name, call, begin, time.monotonic(), status))
        return answer

    def surprised(self, words: str) -> None:
        """Record what no correct service does."""
        self.history.add(Surprise(self.name, time.monotonic(), words))

    async def run(self, stop: asyncio.Event) -> None:
        """Go on until told to stop; the last step is completed."""
        while not stop.is_set():
            await self.step(self.dice())

    async def step(self, dice: Random) -> None:
        """One step of the client's work."""
        raise NotImplementedError


def unanswered(answer: httpx.Response | None) -> bool:
    """Whether nothing is known of the effect: no answer, or 503."""
    return answer is None or answer.status_code == 503
