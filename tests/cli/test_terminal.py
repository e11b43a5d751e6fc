"""Text on a terminal, and completion."""

import json
import subprocess
import sys

import pytest

from app.cli.output import span
from app.cli.terminal import cut, padded, plain, plain_json, width
from tests.processes import PATIENCE, environment, pqs

COMPLETED = """
import sys
sys.argv[0] = "pqs"
from app.cli import pqs
try:
    pqs()
except SystemExit:
    pass
print("modules:", *sys.modules)
"""


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\rc\td", r"a\x0ab\rc\td"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb\u2066c\u2028\ufeff", r"a\u202eb\u2066c\u2028\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("Zürich 北京 👩\u200d🔧", "Zürich 北京 👩\u200d🔧"),
    ],
)
def test_text_without_what_steers_a_terminal(text: str, printed: str) -> None:
    """Controls and invisible marks become escapes; letters of all scripts stay."""
    assert plain(text) == printed


def test_json_without_what_steers_a_terminal() -> None:
    """It is the same JSON."""
    value = {"a": "\x9b\x7f\u202e\U000e0041", "b": ["ü"]}
    body = json.dumps(value, ensure_ascii=False, indent=1).encode()
    printed = plain_json(body).decode()
    assert json.loads(printed) == value
    assert printed.replace("\n", "").isprintable()


def test_width_is_columns() -> None:
    """Wide letters take two columns, combining marks none."""
    assert [width(text) for text in ("abc", "北京", "e\u0301")] == [3, 4, 1]
    assert padded("北", 4) == "北  "
    assert (cut("abcdef", 4), cut("北京市", 5), cut("abcd", 4)) == ("abc…", "北京…", "abcd")


def test_spans_have_two_units() -> None:
    """The two largest ones."""
    assert [span(each) for each in (0.4, 59, 61, 3600, 90_061)] == ["0s", "59s", "1m1s", "1h0m", "1d1h"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    """It calls this command with the variable that asks for completions."""
    run = pqs("completion", shell)
    assert run.returncode == 0
    assert f"_PQS_COMPLETE={shell}_complete" in run.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("pqs get -", "--domain"),
        ("pqs dead-letters r", "retry"),
        ("pqs list -o ndj", "ndjson"),
        ("pqs overdue l", "live"),
    ],
)
def test_completion_of_options_does_without_the_client(words: str, found: str) -> None:
    """Neither the client nor the service's settings are imported for it, nor asyncio, which takes long."""
    run = subprocess.run(
        [sys.executable, "-c", COMPLETED],
        env=environment()
        | {"_PQS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
        capture_output=True,
        check=True,
        text=True,
        timeout=PATIENCE,
    )
    printed, _, modules = run.stdout.partition("modules: ")
    assert found in printed
    assert not {"asyncio", "httpx", "msgspec", "pydantic", "pqs_client"} & set(modules.split())
