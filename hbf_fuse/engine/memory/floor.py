"""Measures what a fault takes beyond the shim: the trap, the signal, the way back. Finds out whether it
works.
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from hbf_fuse.engine.memory import library, probe
from hbf_fuse.engine.memory.door import environment
from hbf_fuse.engine.memory.service import Service
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.pacing.floor import INJECTED_UNSURE_NS, MAPPED_UNSURE_NS, Floor
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.trace import RECORD, Read

_READS = 200
_CHUNK = 4096
_SECONDS = 10
_LEAST_MS, _MOST_MS = 0.02, 1.0
_MOST_NS, _MOST_INJECTED_NS = 50_000, 200_000
"""A larger floor comes from load on the machine."""


def measure(wait_ms: float = _LEAST_MS, inject: bool = False) -> Floor:
    """Measure with a program of its own, for about 0.2 s; unknown if the machine is too busy.

    wait_ms: how long readers will wait for a chunk: after a longer wait, in which a core sleeps, the way back
    takes longer. inject: of programs that are traced, whose faults other threads serve. HbfError if no
    mapping can be served here; it says why.
    """
    doubt_ns = INJECTED_UNSURE_NS if inject else MAPPED_UNSURE_NS
    with tempfile.TemporaryDirectory(prefix="hbf-floor-") as folder:
        source = Path(folder).resolve() / "source"
        source.write_bytes(os.urandom(_READS * _CHUNK))
        spec = TierSpec(latency_ms=min(max(wait_ms, _LEAST_MS), _MOST_MS), chunk_bytes=_CHUNK)
        service = Service(Filesystem(source, spec).served)
        with service.door.answering() as place, source.open("rb") as file:
            # The second time there is nothing to wait for: what the touch itself takes.
            order = f"{_CHUNK} {_READS} 0 1\n"
            try:
                said = subprocess.run(
                    [*([str(library.injector())] if inject else []), *probe.command(file.fileno())],
                    input=order * 2,
                    env={**os.environ, **environment(place, inject)},
                    pass_fds=[file.fileno()],
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return Floor(known=False, doubt_ns=doubt_ns)
            if said.returncode:
                lines = said.stderr.strip().splitlines()
                why = lines[-1].removeprefix("hbf: ") if lines else "its probe failed"
                raise HbfError(
                    f"{'--inject' if inject else '--engine memory'} does not work here: {why}",
                    "use --engine kernel",
                )
            service.look()
        first, again = (json.loads(line)["times"] for line in said.stdout.splitlines()[1:])
        records = service.pacer.ring.since(0)[0]
        seen = [read.done_ns - read.arrival_ns for read in map(Read._make, RECORD.iter_unpack(records))]
        if len(seen) != len(first):
            return Floor(known=False, doubt_ns=doubt_ns)
        beyond = [there - here for there, here in zip(first, seen, strict=True)]
        floor_ns = round(statistics.median(beyond) - statistics.median(again))
        known = 0 <= floor_ns <= (_MOST_INJECTED_NS if inject else _MOST_NS)
        return Floor(((0, floor_ns if known else 0),), known=known, doubt_ns=doubt_ns)
