"""The figures of a release, kept in `results/`, and what has changed since.

A figure has changed where the intervals of the two do not touch; all others are the noise of two runs. Compare only
runs on the same machine: the page of a result says which one it was.
"""

import shutil
from pathlib import Path

from benchmarks.machine import BenchmarkError
from benchmarks.report import KEPT, Measured, Row, figure, read

RESULTS = Path(__file__).resolve().parent / "results"


def result(name: str) -> Path:
    """The file of a release, or of another result by its path. Raises BenchmarkError if there is none."""
    path = Path(name) if name.endswith(".json") else RESULTS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in RESULTS.glob("*.json")))
        raise BenchmarkError(f"there is no result {name}; there are {known}")
    return path


def keep(folder: Path, name: str) -> Path:
    """Keep the results in a folder as a release's; returns the file."""
    RESULTS.mkdir(exist_ok=True)
    return Path(shutil.copyfile(folder / KEPT, RESULTS / f"{name}.json"))


def changed(before: dict[str, Measured], now: dict[str, Measured]) -> str:
    """A line for each figure of both, with `better` or `worse` where it has changed."""
    lines = []
    for part, measured in now.items():
        if part not in before:
            continue
        if before[part].on != measured.on:
            lines.append(f"{part}: another machine then ({before[part].on}); now {measured.on}")
        rows = {(row.what, row.other_name): row for row in before[part].rows}
        for row in measured.rows:
            then = rows.get((row.what, row.other_name))
            if then is not None:
                lines.append(f"{_change(then, row):8}{row.what} / {row.other_name}: {_told(then)} → {_told(row)}")
    return "\n".join(lines) or "no figure is in both"


def compare(path: Path, now: dict[str, Measured]) -> str:
    """What has changed since the results in a file."""
    return f"since {path.stem}:\n{changed(read(path), now)}"


def _change(then: Row, row: Row) -> str:
    if then.low is None or row.low is None:
        return ""
    (low, high), (low_then, high_then) = row.bounds, then.bounds
    if low > high_then:
        return "worse" if row.at_most else "better"
    if high < low_then:
        return "better" if row.at_most else "worse"
    return "same"


def _told(row: Row) -> str:
    low, high = row.bounds
    return f"{figure(row.value)} [{figure(low)}, {figure(high)}], {figure(row.ours)} {row.unit}".rstrip()
