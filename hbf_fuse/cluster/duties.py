"""What a worker's machine does for a sweep: a process of its own for each task, with the machine to itself.

`python -m hbf_fuse.cluster.duties FD` reads a Question or a Task from the descriptor FD and prints a Machine
or a run, all as JSON.
"""

import errno
import json
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse import doctor, documents, streams
from hbf_fuse.calibrate import envelope
from hbf_fuse.cluster import models
from hbf_fuse.cluster.messages import Machine, Question, Task
from hbf_fuse.doctor import readiness
from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.limits import devices
from hbf_fuse.runs.run import Run
from hbf_fuse.sweep import conditions, loop, workloads, workspace
from hbf_fuse.sweep.cell import Cell, ModelFile, described_as

_OF_MOUNTS = ("/dev/fuse", "mount", "fusermount3", "user", "privileges", "WSL")
"""Lines of the doctor that matter only where FUSE mounts are made."""

_NAME = b"\0hbf-machine"
_LOOK_SECONDS = 0.1

_LLAMA = "llama-bench"
"""A line that says less than workloads.check."""


def main() -> None:
    """Do what the descriptor says. A failure that is the machine's is printed to stderr, with exit code 1."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with open(int(sys.argv[1]), "rb") as file:
        asked = documents.parse_json(file.read(documents.MAX_JSON_BYTES))
    try:
        with _to_itself():
            if "cells" in asked:
                print(examined(Question.model_validate(asked)).model_dump_json())
            else:
                print(json.dumps(measured(Task.model_validate(asked)).to_dict()))
    except (HbfError, OSError) as error:
        streams.say(str(error))
        sys.exit(1)


def examined(question: Question) -> Machine:
    """Whether this machine can measure such cells, and what it is. Takes about three seconds."""
    found = Machine(host=platform.node(), facts=dict(machine.facts()))
    try:
        model = models.find(question.model, Path(question.model_path), streams.say)
        found.model = str(model.path)
        cells = [described_as(cell, model, 1.0) for cell in question.cells]
        copied = any(cell.mode in ("stage", "stream") for cell in cells)
        found.concerns = [str(each) for each in conditions.judge(model.size, copied)]
        if any(cell.mode == "cgroup" for cell in cells):
            devices.of(model.path)
        for cell in cells:
            workloads.check(cell.bench, serves=cell.serve is not None)
    except (HbfError, ValueError, OSError) as error:
        found.problems.append(str(error))
        return found
    facts = doctor.collect(model.path)
    mounts = any(cell.engine != "memory" and cell.mode != "cgroup" for cell in cells)
    found.problems += [
        f"{line.name}: {line.message}; {line.remedy}"
        for line in doctor.examine(facts)
        if line.state == doctor.FAIL and line.name != _LLAMA and (mounts or line.name not in _OF_MOUNTS)
    ]
    found.envelope = readiness.envelope(facts).message
    if not isinstance(facts.envelope, HbfError):
        found.concerns += sorted(
            {
                f"envelope: {doubt}"
                for cell in cells
                if (doubt := envelope.doubt(cell.spec, facts.envelope, cell.engine))
            }
        )
    return found


def measured(task: Task) -> Run:
    """The run of a cell on this machine."""
    kept = loop.conditions_of(task.concerns, machine=task.machine)
    try:
        cell: Cell = described_as(task.cell, ModelFile.of(Path(task.model)), task.timeout_seconds)
        if cell.model.sha256 != task.cell.model.sha256:
            raise HbfError(f"{task.model} is another model now", "begin a new sweep (-o)")
    except (ValueError, OSError, HbfError) as error:
        return loop.failed(task.cell, HbfError(str(error)), kept)
    with workspace.lent() as lent:
        lent.warm(2 * cell.model.size)
        run = loop.outcome(cell, lent, kept)
    # The model may have another name here.
    return run.model_copy(update={"cell": task.cell})


@contextmanager
def _to_itself() -> Iterator[None]:
    """Wait until no other task of anybody runs on this machine, and keep others out.

    By a name of the kernel's in the network namespace (unix(7), abstract sockets): it is in no folder that
    machines or users may share or not, and it is free when this process ends.
    """
    with socket.socket(socket.AF_UNIX) as taken:
        while not _binds(taken):
            time.sleep(_LOOK_SECONDS)
        yield


def _binds(taken: socket.socket) -> bool:
    try:
        taken.bind(_NAME)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


if __name__ == "__main__":
    main()
