"""`python -m app` is the `pqs` command."""

from app.cli import pqs

pqs(prog_name="pqs")
