"""Who a request comes from, established once for each request, before its path is looked at."""

from app.access.guard import Guard
from app.access.posture import from_beyond, is_beyond
from app.access.principals import Grant, Principal
from app.access.refusals import ForbiddenError
from app.access.sessions import TOKEN_HEADER, has_token, secret_in
from app.api.asgi import Headers, Scope
from app.api.origins import SAFE
from app.errors import ForeignOriginError, UnavailableError

OPEN_PATHS = frozenset({"/livez", "/readyz"})  # answered to everybody
# The console is, too: its files say nothing of the data, and let people sign in.
CONSOLE_PATHS = frozenset({"/", "/ui"})
BELOW_CONSOLE = "/ui/"
SESSION_PATH = "/ui/session"  # where people sign in and out: it checks its callers itself
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
        self.only_reads = False

    async def caller(self, scope: Scope, *, from_own_page: bool = False) -> Principal:
        """The principal of a request. Unknown paths need one as well.

        A browser sends the cookie of a session by itself. So whatever may change something has to come from a page of
        this service, and to say the session's token. With `only_reads` sessions change nothing at all.

        OPTIONS needs none: a browser asks without credentials before it sends them (Fetch, section 3.2.2).
        Raises AuthError, and UnavailableError when nobody can tell.
        """
        if self.guard is None:
            raise UnavailableError("the service is starting")
        if self.guard.refuses_proxies and is_from_beyond(scope):
            raise from_beyond()
        found = await self.guard.authenticate(scope["headers"], scope["query_string"])
        if isinstance(found, Principal):
            secret = session_in(scope["headers"]) if self.guard.sessions is not None else None
            if secret is not None and scope["method"] not in SAFE and scope["path"] != SESSION_PATH:
                self._check_unsafe(scope["headers"], secret, from_own_page=from_own_page)
            return found
        if is_open(scope["path"], scope["method"]) and not isinstance(found, ForbiddenError):
            return NOBODY
        raise found

    def _check_unsafe(self, headers: Headers, secret: bytes, *, from_own_page: bool) -> None:
        """Raises ForeignOriginError and ForbiddenError."""
        check_page(headers, secret, from_own_page=from_own_page)
        if self.only_reads:
            raise ForbiddenError("the console of this service only reads (PQS_CONSOLE=read-only): use a key", {})


def session_in(headers: Headers) -> bytes | None:
    """The secret of the session by which a request is let in; None where it has a key or a token, or neither."""
    secret = None
    for name, value in headers:
        if name == b"authorization":
            return None
        if name == b"cookie":
            secret = secret_in(value) or secret
    return secret


def check_page(headers: Headers, secret: bytes, *, from_own_page: bool) -> None:
    """Raises ForeignOriginError and ForbiddenError for a call of a session that a foreign page may have made."""
    if not from_own_page:
        raise ForeignOriginError("a session changes something only from a page of this service: `Origin` is missing")
    if not has_token(secret, next((value for name, value in headers if name == TOKEN_HEADER), None)):
        raise ForbiddenError("a session changes something only with its token, in the header PQS-Token", {})
