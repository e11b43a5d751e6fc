"""What README.md and docs/ say is so: their lines are typed, and their answers compared."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.settings import PREFIX, Settings
from tests.broker import Broker

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
LOOP = ROOT / "docs" / "tutorial" / "registration-loop.md"
UPDATE = "UPDATE_README" in os.environ  # write down what is so, instead of comparing

# A block of commands, and the block with what they print.
STEP = re.compile(r"^```sh\n(.*?)^```\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
ADDRESS = "localhost:8000"
KAFKA = "127.0.0.1:9092"
PYTHON = ".venv/bin/python"
# What a default is that is not the same everywhere.
COMPUTED = {"data_dir": "the user's data folder", "bus": "kafka where PQS_KAFKA is set, else off"}
MARK = "\x1e"  # between the outputs of two commands
START_TIMEOUT = 60  # seconds


@contextmanager
def service(data_dir: Path, *options: str) -> Iterator[str]:
    """The service as `make serve` runs it, on a free port; its host and port."""
    command = [sys.executable, "-m", "app", "serve", "--port=0", f"--data-dir={data_dir}", "--log-level=error"]
    command += options
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=data_dir.parent) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            address = re.search(r"http://(\S+:\d+),", said)
            assert address, said
            yield address[1]
        finally:
            process.terminate()
            process.communicate(timeout=START_TIMEOUT)


def walk(page: Path, places: dict[str, str]) -> None:
    """Type every command of a page from its top, in one shell, and compare what they print with what it shows.

    `places` is what the page says, and what stands for it here.
    """
    text = page.read_text(encoding="utf-8")
    steps = STEP.findall(text)
    assert steps
    script = "".join(f"{commands}printf '{MARK}'\n" for commands, _ in steps)
    for said, here in places.items():
        assert said in script
        script = script.replace(said, here)
    shell = subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    assert shell.stderr == ""
    printed = shell.stdout.split(MARK)[:-1]
    if UPDATE:
        answers = iter(printed)
        text = STEP.sub(lambda step: f"```sh\n{step[1]}```\n\n```json\n{next(answers)}```", text)
        page.write_text(text, encoding="utf-8")
    else:
        assert printed == [answer for _, answer in steps]


def test_the_walk_answers_as_it_says(data_dir: Path) -> None:
    """Every command of the README's walk, typed from its top in one shell, prints what the README shows."""
    with service(data_dir) as address:
        walk(README, {ADDRESS: address})


def test_the_registration_loop_goes_round_as_it_says(data_dir: Path, kafka: Broker, topic: str) -> None:
    """The walk of the registration loop, with its sweep and a Kafka, prints what its page shows."""
    options = ("--sweep=true", f"--kafka={kafka.servers}", f"--topic-out={topic}")
    with service(data_dir, *options) as address:
        places = {ADDRESS: address, KAFKA: kafka.servers, "registration-events": topic, PYTHON: sys.executable}
        walk(LOOP, places)


def test_the_settings_are_all_there() -> None:
    """The README's table of settings is what Settings says."""
    rows = ["| variable | default | what it sets |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else str(field.default)
        if field.default_factory is not None:
            default = COMPUTED[name]
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description} |")
    table = "\n".join(rows) + "\n"
    text = README.read_text(encoding="utf-8")
    if UPDATE:
        README.write_text(TABLE.sub(lambda _: table, text), encoding="utf-8")
    else:
        assert TABLE.findall(text) == [table]


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there."""
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []
