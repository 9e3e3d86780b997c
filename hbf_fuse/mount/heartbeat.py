"""Notices that the whole server stood still, for engines without a compiled loop."""

import time
from collections.abc import Callable

from hbf_fuse.pacing.pacer import Pacer


def watch(pacer: Pacer, ended: Callable[[float], bool]) -> None:
    """Run the pacer's beats until the mount ends. ended: waits for the end of the mount, at most so many
    seconds; returns whether it has come.
    """
    now_ns = time.monotonic_ns()
    while True:
        due_ns = pacer.next_beat(now_ns)
        if ended((due_ns - now_ns) / 1e9):
            return
        now_ns = time.monotonic_ns()
        pacer.beat(due_ns, now_ns)
