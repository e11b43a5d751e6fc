"""`pqs load`: sends the lines of a file or a pipe to the service as events."""

import sys
from contextlib import closing

import click

from app.errors import PqsError
from app.load.loader import Loader
from app.load.progress import Progress, summary
from app.load.source import Source

INTERRUPTED = 130  # the exit status after Ctrl-C: 128 and the number of SIGINT


def service_url(host: str, port: int, *, tls: bool = False) -> str:
    """The address of a service on this host and port."""
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def load_file(name: str, url: str, *, token_file: str | None = None) -> int:
    """Send the file, or with `-` standard input, to the service at `url`, and return the exit status.

    0: every line is in. 1: some lines are not; standard error lists them. 130: interrupted. Standard output gets the
    report. Raises StartError as `Loader.load` does, after a report on the lines sent so far.
    """
    progress = Progress(sys.stderr)
    loader = Loader(url, show=progress.show, say=progress.say, token_file=token_file)
    interrupted = False
    try:
        with closing(Source(name)) as source:
            loader.load(source)
    except KeyboardInterrupt:
        interrupted = True
    except PqsError:
        progress.end()
        if loader.received:
            _report(loader, progress.seconds)
        raise
    progress.end()
    _report(loader, progress.seconds)
    if interrupted:
        perhaps = f", and perhaps {loader.on_the_way:,} more that were being sent" if loader.on_the_way else ""
        click.echo(f"pqs: interrupted; {loader.taken_in:,} lines are in{perhaps}", err=True)
        return INTERRUPTED
    return 1 if loader.refused.total else 0


def _report(loader: Loader, seconds: float) -> None:
    click.echo(summary(loader, seconds))
    if loader.refused.total:
        click.echo(f"{loader.refused.total:,} lines are not in:", err=True)
        for line in loader.refused.report():
            click.echo(f"  {line}", err=True)
