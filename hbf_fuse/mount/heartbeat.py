"""Notices that the whole server stood still, where no compiled loop does."""

import time
from collections.abc import Callable

from hbf_fuse.pacing.pacer import Pacer


def watch(pacer: Pacer, ended: Callable[[float], bool]) -> None:
    """Let the pacer's heart beat. ended: waits for the end of the mount, for so many seconds at most, and
    says whether it has come; then this returns.
    """
    now_ns = time.monotonic_ns()
    while True:
        due_ns = pacer.next_beat(now_ns)
        if ended((due_ns - now_ns) / 1e9):
            return
        now_ns = time.monotonic_ns()
        pacer.beat(due_ns, now_ns)
