"""The generated blocks of docs/reference match the code; `make docs` regenerates them."""

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.domain.events import EVENT_TYPES
from docs.reference.blocks import PAGES, WRITERS, filled, names

ROOT = Path(__file__).resolve().parent.parent
PROBLEM_TYPE = re.compile(r"urn:pqs:problem:[a-z-]+")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_generated_block_is_what_the_code_says(page: Path) -> None:
    """Each page equals the output of `make docs`."""
    text = page.read_text(encoding="utf-8")
    assert text == filled(text), "run `make docs`, and read the diff"


def test_every_block_has_its_place() -> None:
    """Each block that can be generated is on exactly one page."""
    found = Counter(name for page in PAGES for name in names(page.read_text(encoding="utf-8")))
    assert found == dict.fromkeys(WRITERS, 1)


def test_every_event_type_has_a_section() -> None:
    """The page about events has a heading for each type, facts and triggers."""
    text = (ROOT / "docs" / "reference" / "events.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^### (\S+\.\S+)$", text, re.MULTILINE)) == set(EVENT_TYPES)


def test_every_problem_type_is_explained() -> None:
    """The page about errors has exactly the problem types that the service answers."""
    answered = {name for path in ROOT.glob("app/**/*.py") for name in PROBLEM_TYPE.findall(path.read_text("utf-8"))}
    said = set(PROBLEM_TYPE.findall((ROOT / "docs" / "reference" / "errors.md").read_text("utf-8")))
    assert said == answered


@pytest.mark.parametrize("picture", sorted((ROOT / "docs").glob("*.svg")), ids=lambda picture: picture.name)
def test_no_picture_cuts_its_labels(picture: Path) -> None:
    """Every text of a picture fits in it, at seven pixels a letter of the usual size."""
    drawing = picture.read_text(encoding="utf-8")
    ElementTree.fromstring(drawing)
    wide = re.findall(r'viewBox="0 0 (\d+) \d+"', drawing)[0]
    for attributes, text in re.findall(r"<text ([^>]*)>([^<]*)</text>", drawing):
        named = dict(re.findall(r'([\w-]+)="([^"]*)"', attributes))
        room = len(text) * 7.0
        before = {"end": room, "middle": room / 2}.get(named.get("text-anchor", "middle"), 0.0)
        assert float(named["x"]) - before >= 0, text
        assert float(named["x"]) - before + room <= int(wide), text
