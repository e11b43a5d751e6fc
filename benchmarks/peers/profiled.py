"""`pqs serve` with a sampling profiler: SIGUSR1 starts it, SIGUSR2 stops it and writes its samples.

The timer counts this process's processor time. A sample belongs to the layer of the innermost Python function that is
part of a layer: time in a C function counts for its caller.
"""

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

from app.cli import pqs

EVERY = 0.001  # seconds of processor time; the kernel may round it up to its own tick
LOOP = "event loop, sockets"
LAYERS = (  # parts of a file's path, and its layer; the first match counts
    ("/asyncpg/", "driver"),
    ("/uvicorn/", "HTTP parsing"),
    ("/app/runtime/metrics.py", "metrics"),
    ("/prometheus_client/", "metrics"),
    ("/app/api/", "request and answer"),
    ("/app/runtime/", "HTTP parsing"),
    ("/app/wire/", "decoding"),
    ("/app/projection/batching.py", "joining"),
    ("/app/domain/", "order and evolve"),
    ("/app/projection/", "order and evolve"),
    ("/app/store/", "statements and rows"),
)


def main() -> None:
    """Serve; the first argument is the file to write, the rest are those of `pqs`."""
    path, *arguments = sys.argv[1:]
    seen: Counter[str] = Counter()

    def sample(_number: int, frame: FrameType | None) -> None:
        while frame is not None:
            file = frame.f_code.co_filename
            for part, layer in LAYERS:
                if part in file:
                    seen[layer if frame.f_code.co_name != "write" else "writing the answer"] += 1
                    return
            frame = frame.f_back
        seen[LOOP] += 1

    def begin(_number: int, _frame: FrameType | None) -> None:
        seen.clear()
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)

    def end(_number: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(path).write_text(json.dumps(seen))

    signal.signal(signal.SIGPROF, sample)
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    pqs(arguments)


if __name__ == "__main__":
    main()
