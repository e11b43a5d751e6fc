"""What the examples of a deployment name, compared with the commands and the settings."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import pytest

from app.cli import pqs
from app.settings import PREFIX, Settings, read_settings

# A content for each file of a secret that the examples name.
SECRET_FILES = {
    "PQS_DATABASE_URL_FILE": "postgresql://pqs@database.example/pqs",
    "PQS_KAFKA_PASSWORD_FILE": "change-me",
}


def command_of(name: str) -> click.Command:
    """A command of `pqs`; fails if there is none of that name."""
    command = pqs.get_command(click.Context(pqs, info_name="pqs"), name)
    assert command is not None, name
    return command


def takes(words: Sequence[str]) -> bool:
    """Whether `pqs` takes these words: click parses them without running the command."""
    name, *rest = words
    command_of(name).make_context(name, list(rest))
    return True


def commands(name: str) -> set[str]:
    """The variables of the settings that a command has as options."""
    options = {option.name for option in command_of(name).params}
    return {PREFIX + each.upper() for each in Settings.model_fields if each in options}


def settings_of(environment: Mapping[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a process in this environment, its secrets in files of `folder`. Raises StartError."""
    assert not [name for name in os.environ if name.startswith(PREFIX)]
    for name, value in environment.items():
        if name in SECRET_FILES:
            (folder / name).write_text(SECRET_FILES[name], encoding="utf-8")
        monkeypatch.setenv(name, str(folder / name) if name in SECRET_FILES else value)
    return read_settings()
