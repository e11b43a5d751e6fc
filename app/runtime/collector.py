"""When Python's garbage collector runs."""

import gc

NEW = 10_000  # objects; Python's own number is 700, and a pass of the relay has thousands of them at once


def collect_seldom() -> None:
    """Let the collector look at what is new alone, and when there is a lot of it. To be called after the imports.

    What has been imported stays, so it need not be walked through each time. What is dropped goes at once as it ever
    does: the collector is for cycles. Those that requests and messages leave are small; whoever makes one around what
    may be large has to break it.
    """
    gc.freeze()
    gc.set_threshold(NEW, *gc.get_threshold()[1:])
