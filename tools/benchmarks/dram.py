"""How much DRAM in front of the tier: `hbf trace replay --resident` and `hbf predict` against real runs.

For each model one decode is recorded with as little DRAM as can be (20 MiB, fifo). From it, and from the GGUF alone,
tokens/s are worked out for every budget and policy. Then llama-bench runs with each, in a new order every round, with a
thread on each core (OMP_PROC_BIND). Prints JSON, a row for each: medians of what was measured, both predictions,
and their errors in percent. A cell takes about 5 s.

    tools/bench dram                                    tiny, tiny-moe and SmolLM2; 9 minutes
    tools/bench dram --models tiny --rounds 1           a minute
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from decode import MODELS, PINNED, model_path

from hbf_fuse.host import machine

RECORDED = ("--resident", "20M", "--policy", "fifo")


def main() -> None:
    options = _options()
    rows = []
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        for model in options.models.split(","):
            rows += _of_model(model_path(model), options, Path(name) / model)
    report = {"machine": machine.facts(), "measured": machine.now(), **vars(options), "rows": rows}
    print(json.dumps(report, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), help="[%(default)s]")
    parser.add_argument("--mbps", type=float, default=400.0, help="of the tier [%(default)s]")
    parser.add_argument("--lat", type=float, default=0.2, help="in ms [%(default)s]")
    parser.add_argument("--resident", default="25%,50%,75%", help="budgets [25%%,50%%,75%%]")
    parser.add_argument("--policy", default="pin,fifo", help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--n-gen", type=int, default=8, help="tokens of a run [%(default)s]")
    parser.add_argument("-t", "--threads", type=int, default=2, help="[%(default)s]")
    return parser.parse_args()


def _of_model(path: Path, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    trace = folder.with_suffix(".trace")
    recorded = _bench(path, options, folder / "recorded", *RECORDED, "--trace", str(trace))
    (run,) = (folder / "recorded" / "runs").glob("*.json")
    points = _hbf(
        "trace", "replay", str(trace), "--run", str(run), "-m", str(path), "--json",
        "--resident", options.resident, "--policy", options.policy,
    )["points"]  # fmt: skip
    cells = [(size, policy) for size in options.resident.split(",") for policy in options.policy.split(",")]
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for number in range(options.rounds):
        for size, policy in random.sample(cells, len(cells)):
            to = folder / f"{number}-{size.rstrip('%')}-{policy}"
            measured[size, policy].append(
                _bench(path, options, to, "--resident", size, "--policy", policy)["metrics"]
            )
        print(f"{path.stem}: round {number + 1} of {options.rounds}", file=sys.stderr)
    compute_ms = 1e3 / recorded["metrics"]["compute_tg"]
    return [
        _row(path, cell, measured[cell], point, _predicted(path, options, cell[0], compute_ms))
        for cell, point in zip(cells, points, strict=True)
    ]


def _predicted(path: Path, options: argparse.Namespace, resident: str, compute_ms: float) -> dict[str, float]:
    """The lines of `hbf predict`, which knows of policy pin."""
    tier = ["--mbps", str(options.mbps), "--lat", str(options.lat), "--compute-ms", str(compute_ms)]
    lines = _hbf("predict", str(path), *tier, "--resident", resident, "--json")["lines"]
    return {line["name"]: line["value"] for line in lines}


def _row(
    path: Path,
    cell: tuple[str, str],
    runs: list[dict[str, Any]],
    point: dict[str, Any],
    predicted: dict[str, float],
) -> dict[str, Any]:
    size, policy = cell
    tg = statistics.median(run["tg"] for run in runs)
    read = statistics.median(run["bytes_per_token"] for run in runs)
    # A cycle through more than DRAM holds leaves nothing to fifo.
    which = "part" if policy == "pin" else "none"
    none_stays = predicted.get("bytes_read", predicted["bytes_per_token"])
    return {
        "model": path.stem,
        "resident": size,
        "policy": policy,
        "tg": tg,
        "tg_runs": [run["tg"] for run in runs],
        "curve_tg": point["tg"],
        "curve_error_pct": (point["tg"] / tg - 1) * 100,
        "bytes_per_token": read,
        "curve_bytes_per_token": point["bytes_per_token"],
        "predict_tg": predicted[f"tg_{which}_resident"],
        "predict_error_pct": (predicted[f"tg_{which}_resident"] / tg - 1) * 100,
        "predict_bytes_per_token": predicted["bytes_from_tier"] if policy == "pin" else none_stays,
        "verdicts": [run["verdict"] for run in runs],
    }


def _bench(path: Path, options: argparse.Namespace, folder: Path, *further: str) -> dict[str, Any]:
    tier = ["--mbps", str(options.mbps), "--lat", str(options.lat)]
    tokens = ["-p", "0", "-n", str(options.n_gen), "-t", str(options.threads)]
    return _hbf("bench", str(path), "--mode", "stream", *tier, *tokens, *further, "-o", str(folder), "--json")


def _hbf(*line: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "hbf_fuse", *line]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env={**os.environ, **PINNED})
    document: dict[str, Any] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main()
