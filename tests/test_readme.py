"""README.md and the tutorial say what is so: their lines are typed, and their answers compared."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.broker import Broker

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial"
LOOP = TUTORIAL / "registration-loop.md"
TYPED = [TUTORIAL / "changes.md", TUTORIAL / "events.md", TUTORIAL / "cloudevents.md", TUTORIAL / "workflows.md"]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"])
MOST_LINES = 150  # of the README
UPDATE = "UPDATE_README" in os.environ  # write down what is so, instead of comparing

# A block of commands, and the block with what they print.
STEP = re.compile(r"^```sh\n(.*?)^```\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
PAGE = re.compile(r"\bdocs/[\w/-]+\.(?:md|json|svg)\b")
LINK = re.compile(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)")
ADDRESS = "localhost:8000"
KAFKA = "127.0.0.1:9092"
PYTHON = ".venv/bin/python"
ENTITY = "5c1f3c1e-9d53-4c58-8a3c-1f0e2d3c4b5a"
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
        text = STEP.sub(lambda step: f"```sh\n{step[1]}```\n\n```text\n{next(answers)}```", text)
        page.write_text(text, encoding="utf-8")
    else:
        assert printed == [answer for _, answer in steps]


def test_the_readme_answers_as_it_says(data_dir: Path) -> None:
    """Every command, typed from the top in one shell at a new service, prints what the page shows; so its example."""
    with service(data_dir) as address:
        walk(README, {ADDRESS: address})
        run_example(address)


@pytest.mark.usefixtures("anyio_backend")  # these tests are no coroutines, and use databases of their own
@pytest.mark.parametrize("page", TYPED, ids=lambda page: page.stem)
def test_a_walk_answers_as_it_says(data_dir: Path, database_url: str, page: Path) -> None:
    """The same of the tutorial's pages, on an empty database of a PostgreSQL that runs."""
    with service(data_dir, f"--database-url={database_url}") as address:
        walk(page, {ADDRESS: address})


@pytest.mark.usefixtures("anyio_backend")
def test_the_registration_loop_goes_round_as_it_says(
    data_dir: Path, database_url: str, kafka: Broker, topic: str
) -> None:
    """The walk of the registration loop, with its sweep and a Kafka, prints what its page shows."""
    options = (f"--database-url={database_url}", "--sweep=true", f"--kafka={kafka.servers}", f"--topic-out={topic}")
    with service(data_dir, *options) as address:
        places = {ADDRESS: address, KAFKA: kafka.servers, "registration-events": topic, PYTHON: sys.executable}
        walk(LOOP, places)


def run_example(address: str) -> None:
    """Run the README's Python example against the service at `address`, and compare what it prints."""
    [(program, shown)] = EXAMPLE.findall(README.read_text(encoding="utf-8"))
    program = program.replace("127.0.0.1:8000", address)
    run = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert (run.stdout, run.stderr) == (shown, "")


def test_the_data_comes_back_as_the_page_says(data_dir: Path) -> None:
    """The commands of the page about data empty the embedded database, and bring a backup back."""
    page = (ROOT / "docs" / "how-to" / "data.md").read_text(encoding="utf-8")
    path, look, truncate, dump, restore, verify = (
        next(line.strip() for line in page.splitlines() if line.startswith(f"    {beginning}"))
        for beginning in (
            "export PATH=",
            "psql",
            'psql "$(pqs db-url)" -c \'TRUNCATE',
            "pg_dump",
            "pg_restore",
            "pqs verify",
        )
    )
    path = path.replace(PYTHON, sys.executable).replace("$PWD/.venv/bin", str(Path(sys.executable).parent))
    with service(data_dir) as address:
        event = (
            '{"event_id": "0b7e7d0e-5c1d-4c2b-9a57-3d6f4b8c1a01", "type": "registration.initiated", "position":'
            f'{{"sequence": 1}}, "entity_id": "{ENTITY}", "occurred_at": "2026-01-01T12:00:00Z",'
            '"data": {"node_type": "compute"}}'
        )
        state = f"curl -s -o /dev/null -w '%{{http_code}} ' http://{address}/v1/entities/{ENTITY}/state"
        script = [
            *("set -euo pipefail", path, f"cd {data_dir.parent}"),
            f"curl -sf -o /dev/null http://{address}/v1/events -H content-type:application/json -d '{event}'",
            *(f"{look} | grep -c registration_projections", dump, state, truncate, state, restore, verify, state),
        ]
        run = subprocess.run(
            ["bash"],
            input="\n".join(script),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | {"PQS_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
        )
    counts = "the state counts equal a full count"
    assert (run.stdout.split("\n"), run.stderr) == (["1", "200 TRUNCATE TABLE", f"404 {counts}", "200 "], "")


def test_the_readme_is_short() -> None:
    """The README has at most 150 lines."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page names a file that is there, and a heading of it where it names one."""
    text = page.read_text(encoding="utf-8")
    missing = []
    for target, anchor in LINK.findall(CODE.sub("", FENCE.sub("", text))):
        file = page.parent / target if target else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(f"{target}#{anchor}")
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_code_names_pages_that_are_there() -> None:
    """Every page of docs/ that a docstring or a comment names is there."""
    files = [path for folder in ("app", "clients", "tests", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")]
    named = {(path.name, name) for path in files for name in PAGE.findall(path.read_text(encoding="utf-8"))}
    assert [each for each in sorted(named) if not (ROOT / each[1]).exists()] == []
