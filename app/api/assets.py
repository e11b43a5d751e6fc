"""The files of a page: served under a digest of all of them, to be kept for ever, and coded in gzip once."""

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import PurePath

from fastapi import Request, Response

from app.api.compression import accepts_gzip
from app.errors import NotFoundError

FOREVER = "public, max-age=31536000, immutable"
MEDIA_TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
CODED = frozenset({".js", ".css", ".svg"})  # a PNG is coded already


class Assets:
    """The files of one page by their names, and `digest`, which is another one when any file changes."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        together = hashlib.sha256()
        for name in sorted(files):
            together.update(b"%b\0%d\0%b" % (name.encode(), len(files[name]), files[name]))
        self.digest = together.hexdigest()[:16]
        self.files = dict(files)
        self.coded = {
            name: gzip.compress(content, mtime=0) for name, content in files.items() if PurePath(name).suffix in CODED
        }

    def answer(self, request: Request) -> Response:
        """Answer the file that the path names, by `digest` and `name`. Raises NotFoundError for any other."""
        name = request.path_params["name"]
        if request.path_params["digest"] != self.digest or name not in self.files:
            raise NotFoundError("there is no such file of this page; load the page again")
        headers, media_type = {"Cache-Control": FOREVER}, MEDIA_TYPES[PurePath(name).suffix]
        if name not in self.coded or not accepts_gzip(request.scope["headers"]):
            return Response(self.files[name], headers=headers, media_type=media_type)  # ContentCoding adds `Vary`
        headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        return Response(self.coded[name], headers=headers, media_type=media_type)
