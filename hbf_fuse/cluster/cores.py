"""A function of many items on the cores of this machine."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux

Item = TypeVar("Item")
Result = TypeVar("Result")

ALONE_SECONDS = 0.2
"""What is done after this time is done by this process alone: to start others takes as long."""

_MOST_TOGETHER = 16
"""Items that a process takes at once."""


def count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def over(function: Callable[..., Result], items: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
    """function(*item) of each, in the order of the items, by up to `jobs` processes. Raises what it raises
    for the first item that it fails for.

    function and items are pickled; the function once for each process.
    """
    begin = time.monotonic()
    for done, item in enumerate(items):
        if jobs > 1 and time.monotonic() - begin > ALONE_SECONDS and len(items) - done > 1:
            yield from _by_processes(function, items[done:], jobs)
            return
        yield function(*item)


def in_pieces(items: Sequence[Item], most: int, hands: int) -> list[Sequence[Item]]:
    """Up to `most` items together, so few that each of the hands gets several pieces."""
    together = max(1, min(most, len(items) // (8 * hands)))
    return [items[first : first + together] for first in range(0, len(items), together)]


def _by_processes(
    function: Callable[..., Result], items: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[Result]:
    # Not by fork: the progress bar is a thread, which may hold a lock at that moment.
    context = multiprocessing.get_context("spawn")
    jobs = min(jobs, len(items))
    with ProcessPoolExecutor(jobs, context, _begin, (function,)) as pool:
        futures = [pool.submit(_called, piece) for piece in in_pieces(items, _MOST_TOGETHER, jobs)]
        try:
            for future in futures:
                yield from future.result()
        except BrokenProcessPool as error:
            raise HbfError(
                "a process that computed was killed, perhaps for lack of memory", "use fewer (--jobs 1)"
            ) from error
        except BaseException:
            # What they compute may take long, and nobody wants it any more.
            for process in multiprocessing.active_children():
                process.terminate()
            raise


_function: Callable[..., Any] | None = None
"""Of a process of the pool."""


def _begin(function: Callable[..., Any]) -> None:
    global _function  # noqa: PLW0603 - a process has one task
    linux.die_with_parent()
    # Ctrl-C is for the process that has the results.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _function = function


def _called(piece: Sequence[tuple[Any, ...]]) -> list[Any]:
    assert _function  # noqa: S101 - by _begin
    return [_function(*item) for item in piece]
