"""`python -m tests.faults`: run a campaign and print its result.

The status is 1 if a check found a violation, and 3 if a server that is needed is not installed.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.faults.campaign import LONG, Plan, Result, run
from tests.faults.faults import HUNG_UP
from tests.faults.planted import NAMES
from tests.postgres.servers import BACK_WITHIN

PLANTED_SECONDS = 10.0
MISSING = 3  # the status when a server is not installed


def _main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.faults")
    arguments.add_argument("--seconds", type=float, help="of faults at most; 60, or with --long 7200")
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="chooses faults and requests")
    arguments.add_argument("--long", action="store_true", help="hundreds of faults of each kind")
    arguments.add_argument(
        "--back-within",
        type=float,
        default=BACK_WITHIN,
        metavar="SECONDS",
        help="in which the service has to be back after its database; more on a machine that others share",
    )
    arguments.add_argument("--planted", action="store_true", help="plant faults in the service; each has to be found")
    arguments.add_argument("--json", type=Path, help="where the result is written as well")
    arguments.add_argument(
        "--fault", action="append", default=[], metavar="KIND=N", help="make these faults only, each so often"
    )
    given = arguments.parse_args()
    if given.planted:
        return max(_planted(name, found, given.seed) for name, found in NAMES.items())
    counts = {kind: int(number) for kind, _, number in (each.rpartition("=") for each in given.fault)}
    seconds = given.seconds or (7200.0 if given.long else 60.0)
    result = _run(
        Plan(given.seed, seconds, counts or (LONG if given.long else {}), back_within=given.back_within), given.json
    )
    return int(any(result.violations.values()))


def _run(plan: Plan, also: Path | None = None) -> Result:
    folder = Path(tempfile.mkdtemp(prefix="pqs-faults-"))
    _say(f"seed {plan.seed}, {plan.seconds:.0f} s; history and logs: {folder}")
    result = asyncio.run(run(plan, folder))
    for path in (folder / "result.json", *([also] if also else [])):
        path.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    _print(result)
    return result


def _planted(name: str, checks: Sequence[str], seed: int) -> int:
    _say(f"planted: {name}")
    result = _run(Plan(seed, PLANTED_SECONDS, {HUNG_UP: 1_000_000}, name))
    found = any(result.violations[check] for check in checks)
    _say(f"{'found' if found else 'NOT FOUND'}: {name}")
    return int(not found)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _print(result: Result) -> None:
    for kind, times in sorted(result.faults.items()):
        _say(f"{times:6} {kind}")
    _say(f"{result.requests:6} requests, {result.without_answer} without an answer or 503; {result.events} events")
    if result.slowest_return is not None:
        _say(f"{result.slowest_return:6.2f} s until the service was back after its database, at most")
    for name, found in result.violations.items():
        _say(f"{len(found):6} {name}")
        for each in found[:5]:
            _say(f"         {each}")


if __name__ == "__main__":
    try:
        status = _main()
    except pytest.skip.Exception as missing:
        _say(f"no campaign: {missing}")
        status = MISSING
    sys.exit(status)
