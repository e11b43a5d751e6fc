"""The block about decisions: an index, from the head of each decision's page."""

import re
from pathlib import Path

from docs.reference.markdown import table

FOLDER = Path(__file__).parents[1] / "decisions"
TITLE = re.compile(r"# (\d+)\. (.+)\n\n(.+)\n")
STATUS = re.compile(r"\bStatus: ([^.]+)\.")
DATE = re.compile(r"\bDate: (\d{4}-\d\d-\d\d)\.")


def index() -> str:
    """Every decision with its status and its date. Raises ValueError for a page that begins otherwise."""
    lines = []
    for page in sorted(FOLDER.glob("0*.md")):
        title = TITLE.match(page.read_text(encoding="utf-8"))
        status, date = (title and pattern.search(title[3]) for pattern in (STATUS, DATE))
        if not (title and status and date):
            raise ValueError(f"{page.name} does not begin with a numbered title, and `Status: …. Date: YYYY-MM-DD.`")
        lines.append([title[1], f"[{title[2]}]({page.name})", status[1], date[1]])
    return table(["number", "decision", "status", "date"], lines)
