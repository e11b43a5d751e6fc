"""A few seconds of the fuzzer of the framing; `make fuzz` runs it for longer, with other seeds."""

import os
from pathlib import Path

from tests.edge.conftest import address_of
from tests.fuzz.framing import fuzz
from tests.processes import serving

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))


async def test_the_requests_carried_out_are_those_that_were_sent(tmp_path: Path, database_url: str) -> None:
    """A failure names its seed, which reproduces the cases. Every host is allowed, as a fuzzed one may be valid."""
    with serving(tmp_path, database_url=database_url, allowed_hosts="*", log_level="error") as service:
        count, finds = fuzz(*address_of(service), seconds=SECONDS, seed=SEED)
    assert not finds, f"seed {SEED}: {finds[0]}"
    assert count > 10
