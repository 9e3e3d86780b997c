"""Notices that the whole server stood still, as in a frozen cgroup or on a paused machine: no signal tells
that.
"""

import time
from collections.abc import Callable

from hbf_fuse.pacing.pacer import Pacer

BEAT_SECONDS = 0.005
REST_SECONDS = 0.1
"""Between beats when no read has come for a second."""
LATE_NS = 10_000_000
"""A beat that comes later than this was kept from coming."""

_LIVELY_NS = 1_000_000_000


def watch(pacer: Pacer, ended: Callable[[float], bool]) -> None:
    """Tell the pacer for how long nobody can have seen reads arrive. ended: waits for the end of the mount,
    for so many seconds at most, and says whether it has come; then this returns.
    """
    before_ns = time.monotonic_ns()
    while True:
        lively = before_ns - pacer.counters.last_seen_ns < _LIVELY_NS
        pause = BEAT_SECONDS if lively else REST_SECONDS
        if ended(pause):
            return
        now_ns = time.monotonic_ns()
        due_ns = before_ns + int(pause * 1e9)
        # What was seen since then shows that only this thread was kept waiting; what was seen just now,
        # nothing.
        seen_ns = pacer.counters.last_seen_ns
        if now_ns - due_ns > LATE_NS and not due_ns < seen_ns < now_ns - LATE_NS // 2:
            pacer.was_blind(due_ns, now_ns)
        before_ns = now_ns
