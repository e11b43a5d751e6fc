"""Values of options."""

from datetime import datetime

import click


def moment(value: str) -> datetime:
    """Read a time with a zone, in ISO 8601. Raises BadParameter, also without a zone: nobody could say which."""
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise click.BadParameter(f"{value!r} is not a time with a zone, such as 2026-01-31T12:00:00Z")
    return time


def json_object(value: str) -> dict[str, object]:
    """Read a JSON object. Raises BadParameter."""
    import json  # noqa: PLC0415 - help does without it

    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.BadParameter(f"{value!r} is not a JSON object")
    return found
