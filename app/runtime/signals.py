"""What stops a process, and what its event loop runs on: signals, the loop of a worker, and the garbage collector."""

import asyncio
import gc
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import FrameType

from uvicorn import Config

log = logging.getLogger(__name__)

AGAIN = 0.02  # seconds until what Python has dropped is raised again
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NEW_OBJECTS = 10_000  # until the garbage collector runs; Python's 700 are fewer than one pass of the relay makes


def run_until_stopped(work: Callable[[asyncio.Event], Coroutine[None, None, None]]) -> None:
    """Do `work` to its end, on the event loop that `pqs serve` has: uvloop where it is installed.

    It is given the event that Ctrl-C and SIGTERM set. They stop nothing by themselves, so that what is under way can
    come to its end.
    """

    async def until_stopped() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for each in STOPPING:
            if signal.getsignal(each) is not signal.SIG_IGN:
                loop.add_signal_handler(each, stop.set)
        await work(stop)

    write_stacks_on_signal()
    collect_seldom()
    with asyncio.Runner(loop_factory=Config("").get_loop_factory()) as runner:
        runner.run(until_stopped())


def write_stacks_on_signal() -> None:
    """On SIGUSR1, log the stack of every thread, and of every task of the event loop that runs in this thread."""

    def write(_number: int, _frame: FrameType | None) -> None:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = []
        for ident, top in sys._current_frames().items():  # noqa: SLF001 - documented, in spite of its name
            lines += [f"thread {names.get(ident, ident)}:\n", *traceback.format_stack(top)]
        with suppress(RuntimeError):  # no loop runs here
            for task in asyncio.all_tasks():
                lines.append(f"task {task.get_name()}:\n")
                for top in task.get_stack():
                    lines += traceback.format_stack(top, limit=1)
        log.warning("stacks\n%s", "".join(lines), extra={"event": "stacks"})

    signal.signal(signal.SIGUSR1, write)


def collect_seldom() -> None:
    """Freeze what was imported and raise the threshold: fewer collections, over new objects only.

    To be called after the imports. What is dropped is freed at once as ever: the collector is for cycles. Those that
    requests and messages leave are small; whoever makes one around what may be large has to break it.
    """
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def stop_on_signals() -> None:
    """Turn Ctrl-C, SIGTERM and a closed terminal into a KeyboardInterrupt, once: see ignore_signals."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        # Python drops what is raised within a finalizer, and goes on: so it is raised again a little later.
        if issubclass(what.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, AGAIN)
        else:
            sys.__unraisablehook__(what)

    sys.unraisablehook = unraisable
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(each, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # for uvicorn


def ignore_signals() -> None:
    """From here on the database is being stopped; an impatient second Ctrl-C would leave it running."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
