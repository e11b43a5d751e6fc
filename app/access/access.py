"""Access as a whole, built in one place: the guard, the limits, and what keeps them up to date."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING

from app.access.cache import KeyCache
from app.access.guard import Guard, Tokens
from app.access.limits import Limits
from app.access.sessions import Sessions
from app.errors import StartError, UnavailableError
from app.settings import ConsoleMode, Posture, Settings, secret_of
from app.store.database import Database

if TYPE_CHECKING:
    from app.access.code_flow import CodeFlow

log = logging.getLogger(__name__)

Run = Callable[[asyncio.Event], Coroutine[None, None, None]]


class Access:
    """Who may do what, for one worker on the database at `address`, which is asked anew for each connection.

    `guard` and `limits` are asked for each request. `run` has to be running for as long as requests are answered; in
    the postures that ask nobody for a key it does nothing. `database` keeps the sessions of browsers; without it
    there are none. Raises StartError when an issuer is set without the extra `oidc`, and for settings that make no
    sense.
    """

    def __init__(
        self, settings: Settings, address: Callable[[], str] | str, database: Database | None = None
    ) -> None:
        self._keys: KeyCache | None = None
        self._runs: list[Run] = []
        tokens: Tokens | None = None
        sessions: Sessions | None = None
        self.code_flow: CodeFlow | None = None  # where people sign in at the issuer
        if settings.auth is Posture.REQUIRED:
            self._keys = KeyCache(address)
            self._runs.append(self._keys.run)
            if database is not None and settings.console is not ConsoleMode.OFF:
                sessions = Sessions(database, self._keys, random=os.urandom)
            if settings.oidc_issuer is not None:
                try:
                    from app.access import code_flow  # noqa: PLC0415 - an extra
                    from app.access.tokens import verifier_of  # noqa: PLC0415 - an extra
                except ImportError as error:
                    raise StartError(
                        f"PQS_OIDC_ISSUER needs the extra oidc ({error.name} is not installed): install "
                        "projection-query-service[oidc]"
                    ) from None
                verifier, issuer = verifier_of(settings)
                tokens = verifier
                self._runs.append(issuer.run)
                if settings.oidc_client_id is not None and sessions is not None:
                    client = code_flow.OidcClient(
                        settings.oidc_client_id,
                        secret_of(settings, "oidc_client_secret"),
                        settings.oidc_client_scope,
                    )
                    self.code_flow = code_flow.CodeFlow(issuer.url, client, verifier, random=os.urandom)
        self.guard = Guard(settings.auth, self._keys, tokens, sessions)
        self.limits = Limits()

    async def refresh(self) -> None:
        """Read the keys once, so that the first request finds them. A database that is away is no obstacle."""
        if self._keys is not None:
            with suppress(UnavailableError):
                await self._keys.refresh()

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the database and the issuer until `stop` is set."""
        async with asyncio.TaskGroup() as group:
            for run in self._runs:
                group.create_task(run(stop))
            await stop.wait()
