"""`/ui`: the console, static pages that show the service by its own API, and load nothing from elsewhere.

Every page is the same document: its scripts read the page's name and parameters from the address. It holds nothing of
the service's data, so it is answered to everybody; the calls that it makes are checked as everybody's are. All
addresses are relative, so the pages work under whatever prefix of a proxy.
"""

from functools import cache
from importlib.resources import files
from pathlib import PurePath

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from app.api.assets import MEDIA_TYPES, Assets
from app.api.bodies import JSON
from app.api.negotiation import preferred
from app.api.sign_in import install_sign_in
from app.errors import NotFoundError
from app.settings import ConsoleMode, Posture, Settings

HTML = "text/html"
FIRST = "overview"  # the page that `/ui` leads to
PAGE_NAMES = frozenset(
    {FIRST, "entities", "entity", "overdue", "workflows", "workflow", "changes", "messages", "system"}
)
CONSOLE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SHELL = """<!doctype html>
<html lang="en" data-acts="{acts}" data-auth="{auth}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Projection Query Service</title>
<link rel="icon" type="image/svg+xml" href="{digest}/icon.svg">
<link rel="stylesheet" href="{digest}/style.css">
<script type="module" src="{digest}/main.js"></script>
</head>
<body>
<noscript>These pages need JavaScript. Without it, curl shows the same: see <a href="../openapi.json">openapi.json</a>
and <a href="../docs">docs</a>.</noscript>
</body>
</html>
"""


@cache
def console_files() -> Assets:
    """The scripts, styles and images of the pages."""
    found = {each.name: each.read_bytes() for each in files("app").joinpath("console").iterdir() if each.is_file()}
    return Assets({name: content for name, content in found.items() if PurePath(name).suffix in MEDIA_TYPES})


def install_console(app: FastAPI, settings: Settings) -> None:
    """Add the routes of the pages to `app`, unless the settings leave them out."""
    if settings.console is ConsoleMode.OFF:
        return
    acts = "none" if settings.console is ConsoleMode.READ_ONLY else "all"
    auth = "none"
    if settings.auth is Posture.REQUIRED:
        auth = "key" if settings.oidc_client_id is None else "oidc"

    # Functions that are not async: the files are read in a thread.
    def shell(request: Request) -> Response:
        if request.path_params["page"] not in PAGE_NAMES:
            raise NotFoundError(f"the console has no such page; it has {', '.join(sorted(PAGE_NAMES))}")
        page = SHELL.format(digest=console_files().digest, acts=acts, auth=auth)
        return HTMLResponse(page, headers={"Content-Security-Policy": CONSOLE_POLICY})

    app.add_route("/", _root, include_in_schema=False)
    app.add_route("/ui", _first, include_in_schema=False)
    install_sign_in(app)
    app.add_route("/ui/{page}", shell, include_in_schema=False)
    app.add_route("/ui/{digest}/{name}", _file, include_in_schema=False)


def _root(request: Request) -> Response:
    """Lead browsers to the console. Raises NotFoundError for those that do not prefer HTML."""
    if preferred(request, JSON, HTML) != HTML:
        raise NotFoundError("there is nothing at this path; /openapi.json lists the calls, and /ui shows the service")
    return RedirectResponse(f"ui/{FIRST}", headers={"Vary": "Accept"})


def _first(_request: Request) -> Response:
    """Lead to the first page. The address is relative: the path may begin with a prefix that is not known here."""
    return RedirectResponse(f"ui/{FIRST}")


def _file(request: Request) -> Response:
    """Answer a file of the pages. Raises NotFoundError for any other."""
    return console_files().answer(request)
