"""`pqs load`."""

import os
import sys

import click

from app.cli.options import settings_options
from app.cli.service import URL
from app.load import load_file, service_url
from app.settings import read_settings


@click.command()
@click.argument("file", type=click.Path(allow_dash=True))
@click.option(
    "--url",
    metavar="URL",
    help="The service's address, such as http://127.0.0.1:8000, in place of --host and --port, which make an https "
    "address where PQS_TLS_CERT is set. Also PQS_URL.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="A file that holds the key or token to send; without it PQS_TOKEN or PQS_TOKEN_FILE counts.",
)
@settings_options("host", "port")
def load(file: str, url: str | None, token_file: str | None, **given: str | None) -> None:
    """Send a file of events, one JSON object a line, to the service; - is standard input.

    The file may be packed with gzip or xz. Events that come before the event they build on are sent again at the end,
    by entity and position. The status is 1 when a line is not in; standard error lists such lines with their reasons.
    """
    settings = read_settings(given)
    if url is None and not any(given.values()):  # an option says more than a variable
        url = os.environ.get(URL)
    own = service_url(settings.host, settings.port, tls=settings.tls_cert is not None)
    sys.exit(load_file(file, url or own, token_file=token_file))
