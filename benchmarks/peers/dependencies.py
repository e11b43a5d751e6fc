"""A process that imports the service's imports, starts PostgreSQL if told to, reports that it is up, and waits.

Arguments: a file of module names, a port, and optionally a data directory.
"""

import signal
import socket
import sys
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType


def main(modules: str, port: str, *data_dir: str) -> None:
    """Import, start and wait for SIGTERM."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, stop)
    for name in Path(modules).read_text().split():
        with suppress(ImportError):  # some modules are made at run time, and have no file
            import_module(name)
    with ExitStack() as stack:
        for folder in data_dir:
            from app.embedded.postgres import EmbeddedPostgres  # noqa: PLC0415 - the other measurement needs none of it

            stack.enter_context(EmbeddedPostgres(Path(folder)))
        with socket.create_server(("127.0.0.1", int(port))) as listener:
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(1024)
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
