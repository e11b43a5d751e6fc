"""The generated blocks of the reference pages: their names, and what writes each."""

import re
from collections.abc import Callable
from pathlib import Path

from docs.reference import calls, decisions, events, faults, service

PAGES = [*sorted(Path(__file__).parent.glob("*.md")), decisions.FOLDER / "README.md"]
BLOCK = re.compile(r"^(<!-- generated: (\S+) -->\n).*?^(<!-- end -->)$", re.MULTILINE | re.DOTALL)

WRITERS: dict[str, Callable[[], str]] = {
    "diagram": events.diagram,
    "states": events.states,
    "envelope": events.envelope,
    "facts": events.facts,
    "triggers": events.triggers,
    "deadlines": events.deadlines,
    "calls": calls.calls,
    "values": calls.values,
    "statuses": calls.statuses,
    "settings": service.settings,
    "commands": service.commands,
    "metrics": service.metrics,
    "decisions": decisions.index,
    "faults": faults.faults,
}


def names(text: str) -> list[str]:
    """The blocks of a page, in their order."""
    return [name for _, name, _ in BLOCK.findall(text)]


def filled(text: str) -> str:
    """The page with all its blocks written anew. Raises KeyError for a name that nothing writes."""
    return BLOCK.sub(lambda block: f"{block[1]}{WRITERS[block[2]]()}{block[3]}", text)
