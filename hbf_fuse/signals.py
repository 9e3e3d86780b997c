"""Signals that end a command, at moments when they must not."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait until the block is over: what it makes is made, and known, or neither.

    Outside the main thread, where Python handles no signals, there is nothing to defer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # What the system does by itself (SIG_DFL, SIG_IGN) stays as it is.
    usual = [(number, handler) for number in _ENDING if callable(handler := signal.getsignal(number))]
    try:
        for each, _ in usual:
            signal.signal(each, lambda number, _: came.append(number))
        yield
    finally:
        for each, handler in usual:
            signal.signal(each, handler)
        for number in came:
            signal.raise_signal(number)
