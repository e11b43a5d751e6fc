"""Who a request comes from, established once for each request, before its path is looked at."""

from app.access.guard import Guard
from app.access.posture import from_beyond, is_beyond
from app.access.principals import Grant, Principal
from app.access.refusals import ForbiddenError
from app.api.asgi import Scope
from app.errors import UnavailableError

OPEN_PATHS = frozenset({"/livez", "/readyz"})  # answered to everybody
# The console is, too: its files say nothing of the data, and let people sign in.
CONSOLE_PATHS = frozenset({"/", "/ui"})
BELOW_CONSOLE = "/ui/"
NOBODY = Principal("-", Grant(frozenset()), unlimited=True)  # the caller of an open call who has no good key


def is_from_beyond(scope: Scope) -> bool:
    """Whether a request has come over an address that other machines reach.

    `pqs serve` listens on no such address where it asks nobody for a key; another ASGI server may.
    """
    ends = (scope.get("server"), scope.get("client"))
    return any(end is not None and is_beyond(end[0]) for end in ends)


def is_open(path: str, method: str) -> bool:
    """Whether a request is answered to somebody without a good key."""
    if path in OPEN_PATHS or method == "OPTIONS":
        return True
    return path in CONSOLE_PATHS or path.startswith(BELOW_CONSOLE)


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
        if self.guard.refuses_proxies and is_from_beyond(scope):
            raise from_beyond()
        found = await self.guard.authenticate(scope["headers"], scope["query_string"])
        if isinstance(found, Principal):
            return found
        if is_open(scope["path"], scope["method"]) and not isinstance(found, ForbiddenError):
            return NOBODY
        raise found
