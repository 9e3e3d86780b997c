"""A function of many items on the cores of this machine."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from hbf_fuse.host import linux

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


def _by_processes(
    function: Callable[..., Result], items: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[Result]:
    jobs = min(jobs, len(items))
    together = max(1, min(_MOST_TOGETHER, len(items) // (8 * jobs)))
    # Not by fork: the progress bar is a thread, which may hold a lock at that moment.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (function,)) as pool:
        try:
            yield from pool.map(_call, items, chunksize=together)
        except BaseException:
            # What they compute takes long, and nobody wants it any more.
            pool.shutdown(wait=False, cancel_futures=True)
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


def _call(item: tuple[Any, ...]) -> Any:
    assert _function  # noqa: S101 - by _begin
    return _function(*item)
