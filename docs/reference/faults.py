"""The block about faults: what campaigns made and found, from docs/faults.json."""

import json
from pathlib import Path

from docs.reference.markdown import table

FILE = Path(__file__).parents[1] / "faults.json"


def faults() -> str:
    """A table of the faults of each run, and one of its load and its findings."""
    runs = json.loads(FILE.read_text(encoding="utf-8"))
    names = [run["name"] for run in runs]
    kinds = sorted({kind for run in runs for kind in run["faults"]})
    checks = list(max((run["violations"] for run in runs), key=len, default=()))
    made = [[kind, *(f"{run['faults'].get(kind, 0):,}" for run in runs)] for kind in kinds]
    load = [
        ["seed", *(str(run["seed"]) for run in runs)],
        ["minutes", *(f"{run['seconds'] / 60:.0f}" for run in runs)],
        ["requests", *(f"{run['requests']:,}" for run in runs)],
        ["of them without an answer, or 503", *(f"{run['without_answer']:,}" for run in runs)],
        ["events and triggers", *(f"{run['events']:,}" for run in runs)],
        ["slowest return after the database, seconds", *(_seconds(run["slowest_return"]) for run in runs)],
    ]
    found = [[check, *(_number(run["violations"].get(check)) for run in runs)] for check in checks]
    return "\n".join([table(["fault", *names], made), table(["load", *names], load), table(["found", *names], found)])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _number(found: int | None) -> str:
    return "not checked" if found is None else f"{found:,}"
