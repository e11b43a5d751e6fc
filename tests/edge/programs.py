"""External programs that tests use: real clients and proxies. A test is skipped if its program is missing."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom

import pytest

PATIENCE = 60.0  # seconds for a program to end
POLL = 0.05  # seconds
PORTS = range(12_000, 32_000)


def program(*names: str) -> str:
    """The path of a program, found under any of its names; skips the test if the program is missing."""
    for name in names:
        for folder in (None, "/usr/sbin"):
            if found := shutil.which(name, path=folder):
                return found
    pytest.skip(f"{names[0]} is not installed")


def run(
    *command: object,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    check: bool = True,
    stdin: bytes | None = None,
) -> "subprocess.CompletedProcess[bytes]":
    """Run a program to its end; if it fails, all its output is shown."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        input=stdin,
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, (done.stdout[-4000:] + done.stderr[-4000:]).decode(errors="replace")
    return done


def free_port() -> int:
    """A port on which nothing listens, below the ports that the kernel gives to clients: a restart finds it free."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", SystemRandom().choice(PORTS))) as listener:
            return int(listener.getsockname()[1])


@contextmanager
def nginx(folder: Path, locations: str, http: str = "") -> Iterator[str]:
    """The address of an nginx with these locations, in the foreground; `http` adds directives of that level."""
    port = free_port()
    configuration = folder / "nginx.conf"
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in temporary)
    user = "user root; " if os.geteuid() == 0 else ""  # else its workers may not write here
    configuration.write_text(
        f"{user}daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {paths} {http} server {{ listen 127.0.0.1:{port}; {locations} }} }}\n"
    )
    command = [program("nginx"), "-c", str(configuration), "-p", str(folder), "-e", str(folder / "error.log")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "error.log").read_text()
                    assert time.monotonic() < end
                    time.sleep(POLL)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
