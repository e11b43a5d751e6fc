"""The directory of the server's Unix socket: its names and limits, and its removal."""

import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY = "pqs-"  # what our directories in the temporary directory start with
PORT = 5432  # only a part of the socket's name: nothing listens on TCP
SOCKET_PATH_LIMIT = 103  # bytes; macOS has the smallest sun_path, 104 with its end


def remove_temporary(socket_dir: Path) -> None:
    """Remove a socket directory of ours in the temporary directory; leave any other alone."""
    home = socket_dir.parent
    if home.name.startswith(TEMPORARY) and home.parent == Path(tempfile.gettempdir()):
        # Not rmtree: the name is no proof, a data directory may be called so as well.
        with suppress(OSError):
            remove_sockets(socket_dir)
            home.rmdir()


def remove_sockets(directory: Path) -> None:
    """Remove a directory of sockets. Raises OSError when something else is in it."""
    for path in directory.glob(".s.PGSQL.*"):
        path.unlink()
    with suppress(FileNotFoundError):
        directory.rmdir()
