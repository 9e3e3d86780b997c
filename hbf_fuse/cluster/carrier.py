"""What Dask runs on a worker: it hands a task to a process of its own (duties.py) and waits for the answer.

So a measurement shares no memory, no thread and no setting with Dask, and can be ended at any time.
"""

import json
import os
import sys
from typing import Any

from hbf_fuse.workload import child

RESOURCE = "hbf"
"""`dask worker --resources hbf=1`: what a task needs. A worker has one, so it runs one task at a time."""

PATIENCE_SECONDS = 60.0


def carry(document: dict[str, Any]) -> dict[str, Any]:
    """The answer of `duties` to a Question or a Task. RuntimeError if there is none: what it said last."""
    descriptor = os.memfd_create("hbf-task", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, json.dumps(document).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
        line = ["env", *_unset(), sys.executable, "-P", "-m", "hbf_fuse.cluster.duties", str(descriptor)]
        with child.running(line, pass_fds=[descriptor]) as group:
            while group.look(child.LOOK_MS):
                if _is_unwanted():
                    group.terminate(PATIENCE_SECONDS)
                    raise RuntimeError("nobody waits for this task any more")
    finally:
        os.close(descriptor)
    ended = group.ended
    if ended.returncode:
        raise RuntimeError(ended.stderr.strip()[-500:] or f"it ended with {ended.returncode}")
    try:
        answer: dict[str, Any] = json.loads(ended.stdout)
    except ValueError:
        raise RuntimeError(f"a task printed no answer: {ended.stdout[-200:]!r}") from None
    return answer


def _unset() -> list[str]:
    """Options of env(1) that take away what Dask's nanny sets for its workers: a program under measurement
    would have one OpenMP thread, and another malloc.
    """
    import dask

    added = dask.config.get("distributed.nanny.pre-spawn-environ", {})
    return [f"--unset={name}" for name, value in added.items() if os.environ.get(name) == str(value)]


def _is_unwanted() -> bool:
    """Whether the sweep has cancelled this task, or is gone: the scheduler tells the worker."""
    from distributed import get_worker
    from distributed.worker import thread_state  # type: ignore[attr-defined]

    task = get_worker().state.tasks.get(thread_state.key)
    return task is None or task.state == "cancelled"
