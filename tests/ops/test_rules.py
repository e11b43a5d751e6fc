"""The alert rules: promtool accepts them, and each has tests and a section in the runbook."""

import re
from collections import Counter

import pytest

from tests.edge.programs import program, run
from tests.ops.expressions import OPS, ROOT, RULES, alerts, families, in_reference, panels, parsed

TESTS = RULES.with_name("rules_test.yml")
RUNBOOK = ROOT / "docs" / "how-to" / "runbook.md"
SECTION = re.compile(r"^## (Pqs\w+)$", re.MULTILINE)
PARTS = ("**It means**", "**Hurt**", "**Look**", "**Do**", "**Over**")


def test_prometheus_accepts_rules_and_example() -> None:
    """promtool finds no fault in the rules and in the example of a configuration."""
    promtool = program("promtool")
    run(promtool, "check", "rules", RULES)
    run(promtool, "check", "config", "--syntax-only", RULES.with_name("prometheus.yml"))


def test_the_rules_tests_pass() -> None:
    """promtool runs the tests of the rules."""
    run(program("promtool"), "test", "rules", TESTS)


def test_each_alert_fires_once_and_is_silent_once() -> None:
    """Each alert has one test in which it fires and one in which it does not."""
    tried = Counter(
        (case["alertname"], bool(case["exp_alerts"]))
        for test in parsed(TESTS)["tests"]
        for case in test["alert_rule_test"]
    )
    assert tried == {(alert["alert"], fires): 1 for alert in alerts() for fires in (True, False)}


def test_each_alert_has_a_section_and_each_section_an_alert() -> None:
    """The runbook has one section for each alert, in the order of the rules; the alert's annotation leads there."""
    names = [alert["alert"] for alert in alerts()]
    assert SECTION.findall(RUNBOOK.read_text(encoding="utf-8")) == names
    for alert in alerts():
        page, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert (ROOT / page, anchor) == (RUNBOOK, alert["alert"].lower())
        assert alert["annotations"]["summary"]
        assert alert["labels"]["severity"] in {"critical", "warning", "info"}


def test_each_section_answers_the_same_questions() -> None:
    """What it means, who is hurt, where to look, what to do, and when it is over."""
    _, *sections = re.split(r"^## ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for section in sections:
        if section.startswith("Pqs"):
            assert [part for part in PARTS if part not in section] == [], section


@pytest.mark.parametrize("expr", [*(alert["expr"] for alert in alerts()), *(panel.expr for panel in panels())])
def test_expressions_name_metrics_that_exist(expr: str) -> None:
    """Rules and dashboard name only metrics of the reference."""
    assert families(expr) or expr.startswith(("up", "sum(up"))
    assert families(expr) <= in_reference()


def test_the_wheel_leaves_these_files_out() -> None:
    """Nothing of `ops/` is in the wheel: it lists its packages, and this folder is none of them."""
    assert not list(OPS.rglob("*.py"))
    wheel = re.search(r"^packages = (.*)$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert wheel is not None
    assert "ops" not in wheel[1]
