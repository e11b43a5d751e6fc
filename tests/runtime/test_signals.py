"""Signals: each stops a command, whatever it is doing."""

import subprocess
import sys

PATIENCE = 20.0  # seconds; only a test that fails waits that long
IN_A_FINALIZER = """
import os, signal, time
from app.runtime.signals import stop_on_signals

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs in here, and Python drops what it raises
            pass

stop_on_signals()
try:
    Last()
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    print("stopped")
"""


def test_a_signal_that_comes_in_a_finalizer_is_not_lost() -> None:
    """Python drops exceptions raised in finalizers; a signal there still stops the command, without a message."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FINALIZER], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert (done.stdout, done.stderr) == ("stopped\n", "")
