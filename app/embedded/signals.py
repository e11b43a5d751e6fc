"""Signals that raise exceptions, held back while a program is launched."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold back signals that raise an exception: in the middle of a launch, one would lose the new process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    raising = {each: handler for each, handler in handlers.items() if callable(handler)}
    for each in raising:
        signal.signal(each, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for each, handler in raising.items():
            signal.signal(each, handler)
        for number in held:
            signal.raise_signal(number)
