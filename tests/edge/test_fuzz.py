"""A few seconds of the fuzzer of the framing; `make fuzz` runs it for longer."""

import os
import time

from tests.edge.conftest import address_of
from tests.fuzz.framing import fuzz
from tests.processes import Service

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))


def test_the_requests_carried_out_are_those_that_were_sent(live: Service) -> None:
    """Each run makes up connections of its own; a find names its seed, which makes the same ones again."""
    seed = time.time_ns() % 1_000_000
    count, finds = fuzz(*address_of(live), seconds=SECONDS, seed=seed)
    assert not finds, f"seed {seed}: {finds[0]}"
    assert count > 10
