"""The directory of the server's Unix socket: its names and limits, and its removal."""

import tempfile
from contextlib import suppress
from pathlib import Path

TEMPORARY = "pqs-"  # the prefix of the service's directories in the temporary directory
PORT = 5432  # only a part of the socket's name: the server does not listen on TCP
SOCKET_PATH_LIMIT = 103  # bytes; macOS has the smallest sun_path, 104 with the final NUL


def remove_temporary(socket_dir: Path) -> None:
    """Remove a socket directory that the service made in the temporary directory; leave any other alone."""
    home = socket_dir.parent
    if home.name.startswith(TEMPORARY) and home.parent == Path(tempfile.gettempdir()):
        # Not rmtree: a data directory may have such a name, too.
        with suppress(OSError):
            remove_sockets(socket_dir)
            home.rmdir()


def remove_sockets(directory: Path) -> None:
    """Remove a directory of sockets. Raises OSError if it holds anything else."""
    for path in directory.glob(".s.PGSQL.*"):
        path.unlink()
    with suppress(FileNotFoundError):
        directory.rmdir()
