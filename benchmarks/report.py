"""The results of a run: the table, as text and as Markdown, and the two pictures.

`docs/performance.json` keeps the figures of each part, so that a part run on its own replaces its figures in the
table. All figures of one part come from one run; nothing is compared across parts.
"""

import json
import math
import os
import platform
import statistics
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.verdicts import Interval, Verdict, interval, ratios, verdict

KEPT, TABLE, PICTURE, GROWTH = "performance.json", "reference/performance.md", "performance.svg", "growth.svg"
PAGE = "explanation/performance.md"  # has the rows with a target, between its marks
BEGIN, END = "<!-- measured: make bench writes this -->\n", "<!-- end -->"
HEAD = ("what", "ours", "the other", "ratio", "target", "verdict", "interval")


@dataclass(frozen=True)
class Row:
    """One line of the table: medians, the median ratio of the rounds, and the interval of this median."""

    what: str
    other_name: str
    unit: str
    ours: float
    other: float
    low: float | None
    high: float | None
    target: float | None = None
    at_most: bool = False  # the target is an upper bound
    difference: bool = False  # the difference counts, not the ratio
    ratio: float | None = None  # the median of the rounds' ratios; without it, the ratio of the medians
    rounds: int = 1

    @property
    def value(self) -> float:
        """The value that is compared with the target."""
        if self.difference:
            return self.ours - self.other
        return self.ours / self.other if self.ratio is None else self.ratio

    @property
    def bounds(self) -> Interval:
        """The interval of the value: the value itself where it was measured once."""
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)

    @property
    def verdict(self) -> Verdict | None:
        """The verdict on the target; None without a target."""
        return None if self.target is None else verdict(self.bounds, self.target, at_most=self.at_most)

    def cells(self) -> tuple[str, ...]:
        """The row as the table shows it."""
        unit = f" {self.unit}" if self.difference else ""
        target = "reported" if self.target is None else f"{'≤' if self.at_most else '≥'} {self.target:g}{unit}"
        said = "" if self.verdict is None else self.verdict.value
        said = f"**{said}**" if self.verdict is Verdict.NOT_MET else said
        between = "" if self.low is None or self.high is None else f"{figure(self.low)} to {figure(self.high)}"
        other = f"{self.other_name}: {figure(self.other)} {self.unit}"
        return self.what, f"{figure(self.ours)} {self.unit}", other, figure(self.value) + unit, target, said, between


def compared(
    what: str,
    ours: list[float],
    other_name: str,
    other: list[float],
    unit: str,
    target: float | None = None,
    *,
    at_most: bool = False,
) -> Row:
    """A row from two lists of measurements taken in turns."""
    by_round = ratios(ours, other)
    return Row(
        what,
        other_name,
        unit,
        statistics.median(ours),
        statistics.median(other),
        *interval(by_round),
        target,
        at_most,
        ratio=statistics.median(by_round),
        rounds=len(by_round),
    )


def figure(value: float) -> str:
    """A number with as many digits as are meaningful."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass
class Measured:
    """The results of a part, with time and machine. A reduced run never replaces a full one."""

    rows: list[Row]
    reduced: bool
    commit: str
    at: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    on: str = field(default_factory=lambda: f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}")
    curves: dict[str, dict[str, float]] = field(default_factory=dict)  # of growth: ms by number of rows
    noise: list[float] = field(default_factory=list)  # ms that one fixed loop took before each round


def commit() -> str:
    """The checked-out commit, and whether files have changed since."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    return done.stdout.strip() or "no commit"


def as_text(rows: list[Row]) -> str:
    """The table for a terminal."""
    table = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write(folder: Path, parts: dict[str, Measured], notes: list[str], order: list[str]) -> None:
    """Add the parts to the results of earlier runs, and write the table and the pictures from all of them."""
    kept = read(folder / KEPT)
    for name, part in parts.items():
        if name not in kept or not part.reduced or kept[name].reduced:
            kept[name] = part
    kept = {name: kept[name] for name in order if name in kept}
    told = {name: asdict(part) for name, part in kept.items()}
    (folder / KEPT).write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    (folder / TABLE).parent.mkdir(exist_ok=True)
    (folder / TABLE).write_text(_markdown(kept, notes))
    _summarize(folder / PAGE, kept)
    rows = [row for part in kept.values() for row in part.rows]
    (folder / PICTURE).write_text(_bars([row for row in rows if row.target is not None]))
    if "growth" in kept:
        (folder / GROWTH).write_text(_curves(kept["growth"].curves))


def read(path: Path) -> dict[str, Measured]:
    """The results in a file, by part; none without the file."""
    if not path.exists():
        return {}
    told = json.loads(path.read_text())
    return {name: Measured(**{**part, "rows": [Row(**row) for row in part["rows"]]}) for name, part in told.items()}


def _summarize(page: Path, parts: dict[str, Measured]) -> None:
    """Write the rows with a target into a page, where it exists."""
    if not page.exists():
        return
    lines = ["| what | against | target | ratio | interval | verdict |", "|" + " --- |" * 6]
    for row in (row for part in parts.values() for row in part.rows if row.target is not None):
        what, _, _, ratio, target, said, between = row.cells()
        lines.append(f"| {what} | {row.other_name} | {target} | {ratio} | {between} | {said} |")
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + after)


def _markdown(parts: dict[str, Measured], notes: list[str]) -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|" + " --- |" * len(HEAD)]
    lines += ["| " + " | ".join(row.cells()) + " |" for part in parts.values() for row in part.rows]
    runs: dict[str, list[str]] = {}
    for name, part in parts.items():
        runs.setdefault(f"{part.at[:10]}, {part.on}, {part.commit}", []).append(name)
    told = [f"{', '.join(names)}: {run}" for run, names in runs.items()]
    written = (
        "`make bench` writes this page; [performance](../explanation/performance.md) explains it. "
        "Figures are medians of rounds, the ratio is the median of the rounds' ratios, and the interval is where "
        "this median lies with a confidence of 93 %. A target is met, or not met, where the whole interval says so; "
        "else it is open, although more rounds than usual were run."
    )
    loops = [f"{name}: {said}" for name, part in parts.items() if (said := noise(part.noise))]
    beside = (
        ["The machine's noise, a fixed loop before each round, median and range in ms: " + "; ".join(loops) + "."]
        if loops
        else []
    )
    footer = [f"- {line}" for line in [*told, *beside, *notes]]
    return "\n".join(["# Measurements", "", written, "", *lines, "", *footer, ""])


def noise(loops: list[float]) -> str:
    """The median and the range of the fixed loop, in ms; empty where it did not run."""
    if not loops:
        return ""
    return f"{figure(statistics.median(loops))} ({figure(min(loops))} to {figure(max(loops))})"


# --- Pictures --------------------------------------------------------------------------------------------------

FONT = 'font-family="system-ui, sans-serif" font-size="13"'
LETTER = 7.4  # pixels, an average letter of this font and a little more
GOOD, BAD, GREY = "#2f7d4f", "#b3442e", "#8a8a8a"
LINES = ("#1f6feb", "#b3442e", "#2f7d4f", "#8250df", "#bf8700", "#0f7b8a", "#cf4f9b", "#57606a")


def _svg(width: int, height: int, parts: list[str]) -> str:
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {FONT}>'
    return "\n".join([opening, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>", ""])


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#24292f") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escaped}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _bars(rows: list[Row]) -> str:
    """The degree to which each target is met: a bar that reaches the line meets it; longer is always better."""
    scale, step, most = 180, 26, 2.5
    labels = [f"{row.what} / {row.other_name}" for row in rows]
    left = max(map(_width, labels), default=0) + 20
    right = 0
    parts = []
    for number, row in enumerate(rows):
        assert row.target is not None
        value = max(row.value, 1e-9)
        reached = min(row.target / value if row.at_most else value / row.target, most)
        y = 40 + number * step
        colour = {Verdict.MET: GOOD, Verdict.NOT_MET: BAD}.get(row.verdict or Verdict.OPEN, GREY)
        parts.append(_text(left - 10, y + 14, labels[number], "end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{reached * scale:.1f}" height="18" fill="{colour}"/>')
        unit = f" {row.unit}" if row.difference else ""
        said = f"{figure(row.value)}{unit} (target {'≤' if row.at_most else '≥'} {row.target:g}{unit})"
        parts.append(_text(left + reached * scale + 6, y + 14, said))
        right = max(right, round(left + reached * scale) + 6 + _width(said))
    bottom = 40 + len(rows) * step
    parts += [_line(left + scale, 26, left + scale, bottom, "#24292f"), _text(left + scale, 20, "target", "middle")]
    return _svg(right + 10, bottom + 14, parts)


def _width(text: str) -> int:
    """An upper estimate of the width of a text in pixels."""
    return math.ceil(len(text) * LETTER)


def _curves(curves: dict[str, dict[str, float]]) -> str:
    """Latency (p50) by the number of rows, both on logarithmic scales."""
    left, top, wide, high = 70, 20, 420, 300
    points = {name: {int(rows): ms for rows, ms in curve.items()} for name, curve in curves.items()}
    sizes = sorted({rows for curve in points.values() for rows in curve})
    values = [ms for curve in points.values() for ms in curve.values()]
    low, top_value = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))

    def x_of(rows: int) -> float:
        return left + wide * math.log(rows / sizes[0]) / math.log(max(sizes[-1] / sizes[0], 2))

    def y_of(ms: float) -> float:
        return top + high * (1 - math.log(ms / low) / math.log(top_value / low))

    parts = []
    for rows in sizes:
        parts += [_line(x_of(rows), top, x_of(rows), top + high, "#eaeef2")]
        parts += [_text(x_of(rows), top + high + 20, f"{rows:,}", "middle")]
    ms = low
    while ms <= top_value * 1.01:
        parts += [_line(left, y_of(ms), left + wide, y_of(ms), "#eaeef2")]
        parts += [_text(left - 8, y_of(ms) + 4, f"{ms:g} ms", "end")]
        ms *= 10
    for (name, curve), colour, place in zip(points.items(), LINES * 2, range(len(points)), strict=False):
        path = " ".join(f"{x_of(rows):.1f},{y_of(took):.1f}" for rows, took in sorted(curve.items()))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(left + wide + 20, top + 16 + place * 20, name, colour=colour))
    right = left + wide + 30 + max(map(_width, points), default=0)
    parts.append(_text(left + wide / 2, top + high + 42, "rows in the table", "middle", GREY))
    return _svg(right, top + high + 56, parts)
