"""The page about the house lists every package, on the floors given by the import rules."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "explanation" / "house.md").read_text()
NAME = re.compile(r"`(\w+)(?:/|\.py)?`")


def test_every_package_has_a_row() -> None:
    """The first table lists every package and module of `app/`, except the entry point `__main__`."""
    rows = PAGE[PAGE.index("| package |") : PAGE.index("Imports run one way")]
    named = {name for row in rows.splitlines() if row.startswith("| `") for name in NAME.findall(row.split("|")[1])}
    found = {
        path.stem for path in (ROOT / "app").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__", "__main__"} == named - {"pqs_client"}


def test_the_floors_are_the_layers() -> None:
    """The floors are the layers of the import rules, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    [layers] = [each["layers"] for each in contracts if each["type"] == "layers"]
    floors = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [set(NAME.findall(names)) for _, names in floors] == [set(layer.split(" | ")) for layer in layers]
    assert [int(number) for number, _ in floors] == list(range(len(layers), 0, -1))
