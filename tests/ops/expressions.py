"""The shipped alert rules and the dashboard: their expressions, and the metrics that these name."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROOT = Path(__file__).resolve().parents[2]
OPS = ROOT / "ops"
RULES = OPS / "prometheus" / "rules.yml"
DASHBOARD = OPS / "grafana" / "pqs.json"
REFERENCE = ROOT / "docs" / "reference" / "metrics.md"

METRIC = re.compile(r"\b(?:pqs|http_server|db_client)_\w+(?=[{\[) ,/]|$)", re.MULTILINE)
SAMPLE = re.compile(r"_(?:bucket|count|sum)$")  # what a histogram's samples add to its name


class Panel(NamedTuple):
    """One expression of the dashboard."""

    title: str
    expr: str


def parsed(path: Path) -> Any:
    """A YAML file that holds one document."""
    return msgspec.yaml.decode(path.read_bytes())


def alerts() -> list[dict[str, Any]]:
    """The alert rules."""
    return [rule for group in parsed(RULES)["groups"] for rule in group["rules"]]


def panels() -> list[Panel]:
    """The expressions of the dashboard, as Grafana sends them for the job `pqs`."""
    return [
        Panel(panel["title"], target["expr"].replace("$job", "pqs").replace("$__rate_interval", "1m"))
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", ())
    ]


def families(expr: str) -> set[str]:
    """The metrics that an expression names; a histogram by its own name."""
    return {SAMPLE.sub("", name) for name in METRIC.findall(re.sub(r"\{[^}]*\}", "{}", expr))}


def in_reference() -> set[str]:
    """The metrics that the reference lists."""
    return set(re.findall(r"^\| `(\w+)` \|", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE))
