"""The systemd units: systemd accepts them, and what they name exists."""

import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest

from tests.edge.programs import program, run
from tests.ops.deployed import commands, settings_of, takes
from tests.ops.expressions import OPS

FOLDER = OPS / "systemd"
ROLES = ("serve", "consume", "relay", "sweep")
UNITS = (*ROLES, "migrate")
COMMAND = "/opt/pqs/bin/pqs"
CREDENTIALS = "%d"  # systemd puts the unit's folder of credentials there


def unit(role: str) -> dict[str, list[str]]:
    """The values of each directive of a unit, by the directive's name."""
    found = defaultdict[str, list[str]](list)
    for line in (FOLDER / f"pqs-{role}.service").read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def assignments(text: str) -> dict[str, str]:
    """The variables of a file of settings."""
    return dict(line.split("=", 1) for line in text.splitlines() if line and line[0] != "#")


def environment_of(role: str) -> dict[str, str]:
    """The variables that a unit gives its process."""
    found: dict[str, str] = {}
    for named in unit(role)["EnvironmentFile"]:
        file = FOLDER / Path(named.removeprefix("-")).name
        if file.exists() or not named.startswith("-"):
            found |= assignments(file.read_text(encoding="utf-8"))
    for line in unit(role)["Environment"]:
        found |= dict(each.split("=", 1) for each in shlex.split(line))
    return found


@pytest.mark.parametrize("role", UNITS)
def test_systemd_accepts_the_unit(role: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` finds no fault, with a program that is there in the place of `pqs`."""
    path = tmp_path / f"pqs-{role}.service"
    text = (FOLDER / path.name).read_text(encoding="utf-8")
    path.write_text(text.replace(COMMAND, program("true")))
    done = run(program("systemd-analyze"), "verify", "--man=no", path)
    assert path.name not in done.stderr.decode()


@pytest.mark.parametrize("role", UNITS)
def test_the_command_exists(role: str) -> None:
    """Each unit runs one command of `pqs`, its role's, with options that it has."""
    [line] = unit(role)["ExecStart"]
    path, *words = shlex.split(line)
    assert path == COMMAND
    assert words[0] == role
    assert takes(words)


@pytest.mark.parametrize("role", UNITS)
def test_the_settings_are_accepted(role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable is a setting with a value that the settings accept, and the command has that setting."""
    environment = environment_of(role)
    assert settings_of(environment, tmp_path, monkeypatch).database_url_file is not None
    assert set(environment) <= commands(role)


@pytest.mark.parametrize("role", UNITS)
def test_secrets_are_credentials(role: str) -> None:
    """No variable holds a secret: each names a credential that the unit loads, and all are used."""
    environment = environment_of(role)
    loaded = {each.partition(":")[0] for each in unit(role)["LoadCredential"]}
    files = {value for name, value in environment.items() if name.endswith("_FILE")}
    assert files == {f"{CREDENTIALS}/{name}" for name in loaded}
    assert not {"PQS_DATABASE_URL", "PQS_KAFKA_PASSWORD"} & set(environment)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_started_again(role: str) -> None:
    """A process that ends is started again, however often, and is hardened."""
    found = unit(role)
    assert (found["Restart"], found["StartLimitIntervalSec"]) == (["always"], ["0"])
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "DynamicUser"):
        assert found[name] == ["yes"], name
    assert found["ProtectSystem"] == ["strict"]


def test_the_service_has_time_to_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd kills the service only after PQS_DRAIN and a statement's time-out have passed."""
    settings = settings_of(environment_of("serve"), tmp_path, monkeypatch)
    [seconds] = unit("serve")["TimeoutStopSec"]
    assert float(seconds) >= settings.drain + settings.statement_timeout + 10


def test_each_file_of_settings_belongs_to_a_unit() -> None:
    """No file of settings lies there that no unit reads."""
    named = {Path(each.removeprefix("-")).name for role in UNITS for each in unit(role)["EnvironmentFile"]}
    assert {path.name for path in FOLDER.glob("*.env")} <= named
    assert not [path for path in FOLDER.iterdir() if not re.fullmatch(r".*\.(env|service)", path.name)]
