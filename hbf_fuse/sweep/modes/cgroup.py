"""Mode cgroup: llama-bench maps the real file, and the kernel's io.max is the tier."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import residency
from hbf_fuse.limits import devices, group
from hbf_fuse.limits.files import Limits
from hbf_fuse.runs.metrics import Throttled
from hbf_fuse.sweep import workloads
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.modes.served import Measured
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.tier import TierSpec
from hbf_fuse.verdict import AGREES, OFF, UNSURE, words

TOLERANCE_PCT = 3.0
"""How far from its io.max a rate still counts as agreement."""

HEAD_START_SECONDS = 0.1
"""Worth of reads that a group may have in advance: a slice of blk-throttle (DFL_THROTL_SLICE in Linux)."""


def refusal(spec: TierSpec, layout: Layout) -> str:
    """Why io.max cannot be this tier, or nothing."""
    known = {
        "latency (--lat)": spec.latency_ms,
        "jitter (--jitter)": spec.jitter,
        "planes (--planes)": spec.planes,
        "depth (--depth)": spec.depth,
        "seek (--seek)": spec.seek_ms,
        "placement (--place)": layout.place,
    }
    beyond = [name for name, value in known.items() if value]
    if not beyond:
        return ""
    return (
        f"mode cgroup: io.max knows a bandwidth only, no {' or '.join(beyond)}; leave it out, as with --lat 0"
    )


def measure(cell: Cell, workspace: Workspace) -> Measured:
    """Run llama-bench on the cold files under io.max = the tier's bandwidth.

    Staging lasts from when the first page of the model came into the page cache until all were there.
    HbfError if the limit cannot be had, the kernel does not tell what is resident, or it never was all there.
    """
    if why := refusal(cell.spec, cell.layout):
        raise HbfError(why)
    model, parts = cell.model.path, cell.model.parts
    with _limited(parts, cell.spec) as (enter, in_force):
        resident = residency.drop(*parts)
        if resident is None:
            raise HbfError(f"mode cgroup must see what of {model} is resident", "run as its owner or as root")
        with residency.watching(*parts) as filling:
            bench = workloads.run(cell, workspace, model, enter=enter, shown=model.name)
    if filling.seconds is None:
        raise HbfError(
            f"{model.name} was never resident as a whole", "mode cgroup needs memory for all of it"
        )
    staging = _staging(cell.model.size, filling.seconds, cell.spec, resident)
    staging.io_max_in_force_mbps = in_force.io_mbps
    return Measured(bench, None, resident, staging=staging)


@contextmanager
def _limited(parts: Sequence[Path], spec: TierSpec) -> Iterator[tuple[Callable[[], None] | None, Limits]]:
    """What a process calls to be under the limit, which is in force as it says."""
    if spec.bandwidth_mbps is None:
        yield None, Limits()
        return
    with group.made(Limits.asked(io_mbps=spec.bandwidth_mbps), devices.of_all(parts)) as made:
        yield made.enter, made.in_force()


def _staging(size: int, seconds: float, spec: TierSpec, resident: int) -> Throttled:
    wanted, rate = spec.bandwidth_mbps, size / seconds / 1e6
    error = (rate / wanted - 1) * 100 if wanted else None
    code = "not-cold" if resident else _why_off(error or 0.0, seconds)
    return Throttled(
        stage_seconds=seconds,
        stage_effective_mbps=rate,
        model_mbps=wanted,
        tier_error_pct=error,
        verdict=UNSURE if resident else OFF if code else AGREES,
        reasons=[code] if code else [],
        valid=not code,
        why=words.sentence([code] if code else []),
    )


def _why_off(error_pct: float, seconds: float) -> str:
    """A code, or nothing."""
    if abs(error_pct) <= TOLERANCE_PCT:
        return ""
    if error_pct < 0:
        return "below-io-max"
    return "head-start" if seconds * error_pct / 100 <= HEAD_START_SECONDS * 1.1 else "above-io-max"
