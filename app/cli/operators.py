"""Who runs a command of the command line."""

import getpass
import os
import socket


def operator() -> str:
    """The user who runs this command, for the audit log, as far as the machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"cli:{user}@{socket.gethostname()}"[:300]
