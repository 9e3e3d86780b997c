"""Signals that end a command: delayed at a wrong moment, never lost, heard even if a file system is stuck."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hbf_fuse import streams

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_SECONDS, _LOOKS = 0.5, 4


@contextmanager
def deferred() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP wait until the block is over. So what it makes is always recorded, or not
    made at all.

    Outside of the main thread there is nothing to defer: Python handles no signals there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # SIG_DFL and SIG_IGN stay as they are.
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


def sent_again_if_lost() -> None:
    """Until the process ends: a signal whose handler raised in a destructor is sent once more.

    Python prints and forgets whatever a destructor raises, so a command would go on after Ctrl-C.
    """
    # When Python ends, it takes a module's names away, and what comes then comes here, too.
    usual, number_of = sys.unraisablehook, _number

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        number = number_of(lost.exc_value)
        if number is None:
            usual(lost)
            return
        # Not from here: what is raised in this hook is lost as well.
        main = threading.main_thread().ident or 0
        later = threading.Timer(0.01, signal.pthread_kill, (main, number))
        later.daemon = True
        later.start()

    sys.unraisablehook = hook


def _number(raised: BaseException | None) -> int | None:
    """The signal whose handler raised this."""
    if isinstance(raised, KeyboardInterrupt):
        return signal.SIGINT
    if isinstance(raised, SystemExit) and isinstance(raised.code, int):
        return next((each for each in _ENDING if raised.code == 128 + each), None)
    return None


def _begin(thread: threading.Thread) -> None:
    """Start a thread that takes no signal: one that the main thread holds back would go there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Watch:
    """Ends the process if a signal comes and the main thread does not take it: it is in a system call that
    does not end, such as a read from a stuck mount. No handler can run then; mounts and children have
    watchers of their own.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True, name="signals")
        _begin(self._thread)

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        number, times = 0, 0
        # Looks are counted, not seconds: a process that is stopped takes no signal either.
        while not self._over.wait(_LOOK_SECONDS):
            found = _untaken()
            times = times + 1 if found and found == number else 0
            number = found
            if times >= _LOOKS:
                streams.say("hbf: ended while a file system did not answer")
                os._exit(128 + number)


_watches: list[_Watch] = []


def watch() -> None:
    """From now on a signal ends this process even while the main thread waits for a stuck file system."""
    if not _watches:
        _watches.append(_Watch())


def unwatch() -> None:
    """No longer: before a fork, or where signals are waited for."""
    while _watches:
        _watches.pop().end()


def _untaken() -> int:
    """A signal that is to end this process and waits for the main thread; 0 for none."""
    try:
        with open("/proc/self/status", "rb") as status:
            masks = dict(line.split(b":", 1) for line in status if line.startswith(b"S"))
        pending = int(masks[b"SigPnd"], 16) | int(masks[b"ShdPnd"], 16)
        pending &= ~(int(masks[b"SigBlk"], 16) | int(masks[b"SigIgn"], 16))
    except (OSError, KeyError):
        return 0
    return next((int(number) for number in _ENDING if pending & 1 << number - 1), 0)


def aside(action: Callable[[], None], seconds: float | None = None) -> None:
    """Do what may take long on a slow or stuck disk, so that signals are heard meanwhile. Raises what it
    raises; returns after `seconds` at the latest, done or not.
    """
    failed: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            failed.append(error)

    acting = threading.Thread(target=act, daemon=True)
    _begin(acting)
    acting.join(seconds)
    if failed:
        raise failed[0]
