"""Ctrl-C and SIGTERM during training: finish the step, save, then stop.

Not here: what is said to the user (llmlab/cli). Signals are caught in the main thread only, as
Python allows nowhere else; elsewhere the flag just stays down.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def caught_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether a SIGINT or SIGTERM has come.

    A second SIGINT raises KeyboardInterrupt at once; SIGTERM never does, for a scheduler may send
    it to this process and to the torchrun that passes it on. The former handlers are put back at
    the end.
    """
    came = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if came.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
