"""`python -m tests.faults`: run a campaign and print its result. The status is 1 if a check found a violation."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.faults.campaign import Plan, Result, run


def _main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m tests.faults")
    arguments.add_argument("--seconds", type=float, default=60.0, help="of faults")
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000, help="chooses faults and requests")
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="pqs-faults-"))
    _say(f"seed {given.seed}, {given.seconds:.0f} s; history and logs: {folder}")
    result = asyncio.run(run(Plan(given.seed, given.seconds), folder))
    (folder / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    _print(result)
    return int(any(result.violations.values()))


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
    sys.exit(_main())
