"""Whether a service's databases can serve now: asked once a second at most, however many ask."""

import asyncio
import logging
import time

from app.errors import UnavailableError
from app.store.database import Database

log = logging.getLogger(__name__)

COUNTS_FOR = 1.0  # seconds for which an answer counts


class Readiness:
    """What `/readyz` says: the primary's schema, or the cause why it cannot serve; and the replica's cause, if any.

    A replica that cannot serve does not make the service unready: the primary answers in its place.
    """

    def __init__(self, primary: Database, replica: Database | None = None) -> None:
        self._primary = primary
        self._replica = replica
        self._asking = asyncio.Lock()
        self._until = 0.0
        self._found: str | UnavailableError = ""
        self._replica_found: str | None = None
        self._logged: str | None = None

    async def check(self) -> tuple[str, str | None]:
        """The schema's revision, and the cause why the replica cannot serve. Raises UnavailableError."""
        async with self._asking:
            if time.monotonic() >= self._until:
                await self._ask()
                self._until = time.monotonic() + COUNTS_FOR
        if isinstance(self._found, UnavailableError):
            raise type(self._found)(str(self._found))
        return self._found, self._replica_found

    async def states(self) -> list[tuple[str, bool]]:
        """Each database by its name in the metrics, and whether it can serve. Never raises UnavailableError."""
        try:
            await self.check()
        except UnavailableError:
            found = [("primary", False)]
        else:
            found = [("primary", True)]
        return found if self._replica is None else [*found, ("replica", self._replica_found is None)]

    async def _ask(self) -> None:
        causes: list[str] = []
        try:
            self._found = await self._primary.check()
        except UnavailableError as error:
            self._found = error
            causes.append(str(error))
        self._replica_found = None
        if self._replica is not None:
            try:
                await self._replica.check(writes=False)
            except UnavailableError as error:
                self._replica_found = f"read database: {error}"
                causes.append(self._replica_found)
        said = "; ".join(causes) or None
        if said != self._logged:
            self._logged = said
            log.warning("not ready: %s", said) if said else log.info("ready")
