"""`/docs`: Swagger UI from the files of an installed wheel, in a page of our own that loads nothing from elsewhere.

The wheel is `fastapi-swagger`. Its files are found without an import, so none of its code runs, and are served only
if they are the ones that this release was tested with.
"""

import hashlib
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import HTMLResponse

from app.api.assets import Assets
from app.errors import UnavailableError

PACKAGE = "fastapi_swagger"
# SHA-256 of each file of version 0.4.64, which has Swagger UI 5.34.0.
DIGESTS = {
    "swagger-ui-bundle.js": "3f6abf70480db7e07914df4c98a77385f22ea585eaf457a3e6415ba0eae2d167",
    "swagger-ui.css": "c3cfe8248c4b0b89673600fb829924eafbac6de4bc4b2b06f5f5243483074d0a",
    "favicon-32x32.png": "3ed612f41e050ca5e7000cad6f1cbe7e7da39f65fca99c02e99e6591056e5837",
}
OWN = "page.js"  # beside this module as swagger.js
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Relative: the page finds its parts under whatever prefix a proxy serves it.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Projection Query Service</title>
<link rel="icon" type="image/png" href="docs/{digest}/favicon-32x32.png">
<link rel="stylesheet" href="docs/{digest}/swagger-ui.css">
</head>
<body>
<main id="docs">Without JavaScript, read <a href="openapi.json">openapi.json</a>.</main>
<script src="docs/{digest}/swagger-ui-bundle.js"></script>
<script src="docs/{digest}/page.js"></script>
</body>
</html>
"""


def folder() -> Path:
    """Where the wheel's files are. Raises UnavailableError if it is not installed."""
    spec = find_spec(PACKAGE)  # of a package at the top: it is looked for, not imported
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("this page needs the package fastapi-swagger; /openapi.json has the same document")
    return Path(spec.submodule_search_locations[0]) / "resources"


@cache
def assets() -> Assets:
    """All files of the page.

    Raises UnavailableError if a file is missing, or is not the one that this release was tested with.
    """
    found = {OWN: files("app.api").joinpath("swagger.js").read_bytes()}
    for name, digest in DIGESTS.items():
        try:
            found[name] = (folder() / name).read_bytes()
        except OSError as error:
            raise UnavailableError(f"the file {name} of fastapi-swagger cannot be read") from error
        if hashlib.sha256(found[name]).hexdigest() != digest:
            raise UnavailableError(f"the file {name} of fastapi-swagger is of another version than this release's")
    return Assets(found)


def page(_request: Request) -> Response:
    """Answer the page. A function that is not async: the files are read in a thread."""
    return HTMLResponse(PAGE.format(digest=assets().digest), headers={"Content-Security-Policy": POLICY})


def asset(request: Request) -> Response:
    """Answer a file of the page, under a path that changes with the files. Raises NotFoundError for any other."""
    return assets().answer(request)
