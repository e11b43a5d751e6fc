"""Releases: what has changed since, where the intervals do not touch."""

from pathlib import Path

import pytest

from benchmarks.machine import BenchmarkError
from benchmarks.releases import RESULTS, changed, result
from benchmarks.report import Measured, Row, compared, read, write


def lookups(*ours: float) -> Measured:
    """Rounds of lookups against a peer of 100 a second."""
    return Measured(
        [compared("lookup", list(ours), "go", [100.0] * len(ours), "/s", 1.3)], False, "abc", noise=[50.0]
    )


def test_a_figure_has_changed_where_the_intervals_do_not_touch() -> None:
    before = {"lookup": lookups(130, 131, 132, 133, 134)}
    assert changed(before, {"lookup": lookups(120, 121, 122, 123, 124)}).startswith("worse")
    assert changed(before, {"lookup": lookups(140, 141, 142, 143, 144)}).startswith("better")
    assert changed(before, {"lookup": lookups(129, 130, 131, 132, 133)}).startswith("same")
    assert changed({}, before) == "no figure is in both"


def test_a_latency_that_falls_is_better() -> None:
    def waits(*ours: float) -> dict[str, Measured]:
        row = compared("p99", list(ours), "go", [10.0] * len(ours), "ms", 1.0, at_most=True)
        return {"tail": Measured([row], False, "abc")}

    assert changed(waits(9, 9.1, 9.2), waits(5, 5.1, 5.2)).startswith("better")


def test_the_results_of_the_first_release_are_kept() -> None:
    assert "lookup" in read(result("0.1.0"))
    assert result(str(RESULTS / "0.1.0.json")) == result("0.1.0")


def test_an_unknown_release_is_told_with_the_known_ones() -> None:
    with pytest.raises(BenchmarkError, match=r"no result 9\.9\.9; there are .*0\.1\.0"):
        result("9.9.9")


def test_a_page_gets_the_rows_with_a_target(tmp_path: Path) -> None:
    page = tmp_path / "explanation" / "performance.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- measured: make bench writes this -->\nold\n<!-- end -->\nafter\n")
    told = lookups(140, 141, 142, 143, 144)
    told.rows.append(Row("reported", "node", "/s", 1.0, 2.0, None, None))
    write(tmp_path, {"lookup": told}, [], ["lookup"])
    said = page.read_text()
    assert "| lookup | go | ≥ 1.3 | 1.42 | 1.40 to 1.44 | met |" in said
    assert said.startswith("before\n")
    assert said.endswith("<!-- end -->\nafter\n")
    assert "old" not in said
    assert "reported" not in said
    assert "lookup: 50.0 (50.0 to 50.0)" in (tmp_path / "reference" / "performance.md").read_text()
