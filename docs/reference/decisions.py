"""The block about decisions: an index, from the head of each decision's page."""

import re
from pathlib import Path

from docs.reference.markdown import table

FOLDER = Path(__file__).parents[1] / "decisions"
HEAD = re.compile(r"# (\d+)\. (.+)\n\nStatus: ([^.\n]+)\. Date: (\d{4}-\d\d-\d\d)\.\n")


def index() -> str:
    """Every decision with its status and its date. Raises ValueError for a page that begins otherwise."""
    lines = []
    for page in sorted(FOLDER.glob("0*.md")):
        head = HEAD.match(page.read_text(encoding="utf-8"))
        if head is None:
            raise ValueError(f"{page.name} does not begin with a numbered title, and `Status: …. Date: YYYY-MM-DD.`")
        number, title, status, date = head.groups()
        lines.append([number, f"[{title}]({page.name})", status, date])
    return table(["number", "decision", "status", "date"], lines)
