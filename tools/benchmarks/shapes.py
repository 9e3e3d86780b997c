"""One model in the shapes that people have it in: whole, split, in the caches of other tools, beside a projector.

Each shape goes through each mode with a real llama-bench, interleaved. Prints JSON: for each, the bytes that the mount
counted against the model's own, and the stage time against that of the whole file. Then `checks`: whether all bytes
were counted once, and whether stage times are within 1% (medians).

    tools/bench shapes --runs 3
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from hbf_fuse.gguf import presets, synth
from hbf_fuse.host import machine

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from splitting import split_gguf

MODES = ("mmap", "stage", "stream", "cgroup")
TOLERANCE_PCT = 1.0
PARTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="[a synthetic one, preset tiny]")
    parser.add_argument("--mbps", default=200.0, type=float, help="[%(default)g]")
    parser.add_argument("--lat", default=0.5, type=float, help="in ms; cgroup has none [%(default)g]")
    parser.add_argument("--runs", default=3, type=int, help="of each shape in each mode [%(default)s]")
    parser.add_argument("--modes", default=",".join(MODES), help="[%(default)s]")
    options = parser.parse_args()
    # On a disk: mode cgroup limits one.
    with tempfile.TemporaryDirectory(prefix="hbf-shapes-", dir=Path.home()) as name:
        folder = Path(name)
        model = options.model or _made(folder / "tiny.gguf")
        shapes, environment = _shapes(model, folder)
        found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        order = random.Random(1)  # noqa: S311 - an order, not a secret
        plan = [(shape, mode) for shape in shapes for mode in options.modes.split(",")]
        for run in range(options.runs):
            for shape, mode in order.sample(plan, len(plan)):
                print(f"run {run + 1}: {shape}, {mode}", file=sys.stderr, flush=True)
                output = folder / "results" / f"{shape}-{mode}-{run}"
                found[shape, mode].append(_bench(shapes[shape], mode, options, output, environment))
    document = {
        "environment": {**machine.facts(), **machine.now()},
        "size": model.stat().st_size if options.model else None,
    }
    rows = [_row(shape, mode, runs, found["whole", mode]) for (shape, mode), runs in sorted(found.items())]
    print(json.dumps({**document, "rows": rows, "checks": _checks(rows)}, indent=1))


def _made(path: Path) -> Path:
    synth.write(presets.load("tiny"), path)
    return path


def _shapes(model: Path, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What `hbf bench -m` is given for each shape, and the environment that other tools' caches need."""
    split, hub, ollama, beside = (folder / name for name in ("split", "hub", "ollama", "beside"))
    for each in (split, beside):
        each.mkdir()
    parts = split_gguf(model, split, PARTS)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    repository = hub / "models--maker--model"
    blob = repository / "blobs" / digest
    link = repository / "snapshots/0a1b2c" / "model-Q4_K_M.gguf"
    for each in (blob.parent, link.parent, repository / "refs"):
        each.mkdir(parents=True)
    os.link(model, blob)
    link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs/main").write_text("0a1b2c")
    manifest = ollama / "manifests/registry.ollama.ai/library/model/latest"
    layer = ollama / "blobs" / f"sha256-{digest}"
    for each in (manifest.parent, layer.parent):
        each.mkdir(parents=True)
    os.link(model, layer)
    about = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{digest}",
        "size": model.stat().st_size,
    }
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [about]}))
    os.link(model, beside / "model.gguf")
    shapes = {
        "whole": str(model),
        "split": str(parts[1]),
        "hugging-face": "hf:maker/model",
        "ollama": "ollama:model",
        "beside": str(beside / "model.gguf"),
    }
    return shapes, {"HF_HUB_CACHE": str(hub), "OLLAMA_MODELS": str(ollama)}


def _bench(
    source: str, mode: str, options: argparse.Namespace, output: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """The stored run of one `hbf bench`."""
    line = [sys.executable, "-P", "-m", "hbf_fuse", "bench", "-m", source, "--mode", mode]
    line += ["--mbps", str(options.mbps), *([] if mode == "cgroup" else ["--lat", str(options.lat)])]
    line += ["-p", "8", "-n", "4", "-t", "2", "-o", str(output), "--json"]
    said = subprocess.run(line, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
    run: dict[str, Any] = json.loads(said.stdout)
    return run


def _row(shape: str, mode: str, runs: list[dict[str, Any]], whole: list[dict[str, Any]]) -> dict[str, Any]:
    stage, of_whole = (
        statistics.median(run["metrics"]["stage_seconds"] for run in each) for each in (runs, whole)
    )
    counted = {run["metrics"]["tier_bytes_read"] for run in runs}
    return {
        "shape": shape,
        "mode": mode,
        "model_bytes": runs[0]["cell"]["model"]["size"],
        "counted_bytes": sorted(counted - {None}),
        "stage_seconds": stage,
        "against_whole_pct": (stage / of_whole - 1) * 100,
        "verdicts": [run["metrics"]["verdict"] for run in runs],
    }


def _checks(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """Mode stream reads what it needs again, and mode cgroup counts nothing."""
    counting = [row for row in rows if row["mode"] in ("mmap", "stage")]
    timed = [row for row in rows if row["mode"] != "cgroup"]
    return {
        "every byte was counted once": all(row["counted_bytes"] == [row["model_bytes"]] for row in counting),
        f"stage times are within {TOLERANCE_PCT:g}%": all(
            abs(row["against_whole_pct"]) <= TOLERANCE_PCT for row in timed
        ),
    }


if __name__ == "__main__":
    main()
