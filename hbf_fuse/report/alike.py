"""What runs must have in common for a median over them to mean anything."""

from collections import defaultdict
from collections.abc import Sequence

from hbf_fuse.runs.run import Finished, Run
from hbf_fuse.tier import TierSpec

Setting = dict[str, str]
"""Of a run: what matters, and its value in words."""

_OF_MACHINES = ("CPU", "kernel")
WHAT = (
    "model",
    "engine",
    "tier detail",
    "placement of tensors",
    "CPU",
    "kernel",
    "llama-bench",
    "llama-server",
    "hbf-fuse",
)

UNKNOWN = "unknown"
_USUAL = TierSpec().to_dict()
_AXES = ("bandwidth_mbps", "latency_ms")


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Of each run. One that failed does not tell what it ran on: it gets what its machine's others have."""
    machines: dict[str, Setting] = {}
    for run in runs:
        if isinstance(run, Finished):
            machines.setdefault(run.conditions.machine, _environment(run))
    first = next(iter(machines.values()), {})
    return [
        _measured(run)
        | (_environment(run) if isinstance(run, Finished) else machines.get(run.conditions.machine, first))
        for run in runs
    ]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """What is not the same in all runs, and its values."""
    known: dict[str, dict[str, None]] = defaultdict(dict)
    for setting in settings(runs):
        for what, value in setting.items():
            known[what][value] = None
    return {what: list(values) for what, values in known.items() if len(values) > 1}


def titles(runs: Sequence[Run]) -> list[str]:
    """For each run, what of its setting others do not share; empty where all are alike."""
    unlike = differing(runs)
    return [
        ", ".join(f"{what} {value}" for what, value in setting.items() if what in unlike)
        for setting in settings(runs)
    ]


def machine_of(runs: Sequence[Run]) -> str:
    """What runs of one folder tell of their machines."""
    known = [_environment(run) for run in runs if isinstance(run, Finished)]
    return " | ".join(sorted({", ".join(setting[what] for what in _OF_MACHINES) for setting in known}))


def measured(run: Finished) -> Setting:
    """What a run has in common with the same cell on another machine."""
    known = _measured(run) | _environment(run)
    return {what: value for what, value in known.items() if what not in _OF_MACHINES}


def _measured(run: Run) -> Setting:
    cell = run.cell
    placed = [*cell.layout.place, *(f"{name}: {tier}" for name, tier in sorted(cell.layout.tiers.items()))]
    return {
        "model": f"{cell.model.name} {cell.model.sha256[:8]}".strip(),
        "engine": cell.engine,
        "tier detail": _detail(cell.tier) or "none",
        "placement of tensors": ", ".join(placed) or "none",
    }


def _detail(tier: TierSpec) -> str:
    """Of a tier all but its bandwidth and latency, where it is not the usual."""
    unusual = {
        key: value for key, value in tier.to_dict().items() if key not in _AXES and value != _USUAL.get(key)
    }
    return ", ".join(f"{key} {value}" for key, value in unusual.items())


def _program(run: Run) -> str:
    return "llama-server" if run.cell.serve else "llama-bench"


def _environment(run: Finished) -> Setting:
    known = run.environment
    return {
        "CPU": f"{known.cpu}, {known.cores or UNKNOWN} cores{', virtual' if known.virtual else ''}",
        "kernel": known.kernel,
        _program(run): run.llama_bench.version.removeprefix("version: "),
        "hbf-fuse": known.hbf_fuse,
    }
