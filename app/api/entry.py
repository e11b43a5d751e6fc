"""Who a request comes from, established once for each request, before its path is looked at."""

from app.access.guard import Guard
from app.access.principals import Grant, Principal
from app.access.refusals import ForbiddenError
from app.api.asgi import Scope
from app.errors import UnavailableError

OPEN_PATHS = frozenset({"/livez", "/readyz"})  # answered to everybody
NOBODY = Principal("-", Grant(frozenset()), unlimited=True)  # the caller of an open call who has no good key


class Entrance:
    """The door of one application. `guard` is set once its service is built; before, nobody is let in."""

    def __init__(self) -> None:
        self.guard: Guard | None = None

    async def caller(self, scope: Scope) -> Principal:
        """The principal of a request. Unknown paths need one as well.

        OPTIONS needs none: a browser asks without credentials before it sends them (Fetch, section 3.2.2).
        Raises AuthError, and UnavailableError when nobody can tell.
        """
        if self.guard is None:
            raise UnavailableError("the service is starting")
        found = await self.guard.authenticate(scope["headers"], scope["query_string"])
        if isinstance(found, Principal):
            return found
        is_open = scope["path"] in OPEN_PATHS or scope["method"] == "OPTIONS"
        if is_open and not isinstance(found, ForbiddenError):
            return NOBODY
        raise found
