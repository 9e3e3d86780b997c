"""Writes docs/simulation.md: simulated against measured on real mounts, point by point.

KV replay: the spill pattern of a model on mounts of 12 tiers, without prefetch and with it. Trace replay: one
llama-bench recorded at full speed, against the stage times of docs/findings-v3.csv; and one decode from a fast
tier, against the decode speeds that a sweep (tools/decode) measured on others.

    tools/simulation -m model.gguf --decode results/decode/tiny     about 10 minutes
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from hbf_fuse.gguf import kv, read
from hbf_fuse.kv import replay as kv_replay
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.mount import tied
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.mount.source import cache_dir
from hbf_fuse.observe import attribution, chains, machine
from hbf_fuse.observe.attribution import Phase
from hbf_fuse.observe.trace import Read, Trace
from hbf_fuse.report.summary import table
from hbf_fuse.sweep.results import Results
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import format_size

DOCS = Path(__file__).parent.parent.parent / "docs"
KV_TIERS = [(mbps, lat) for mbps in (100, 250, 500, 1000) for lat in (0, 1, 5)]
KV_TOKENS = 5
SPILLED_TOKENS = 1024
COMPUTE_SECONDS = 0.1
TRACE_MBPS = 1600
"""Decode is recorded here; what it predicts is held against other tiers only."""

_INTRO = """# Simulated against measured

The simulators drive the same device as the mounts do (`tier/`), in virtual time. Here both stand side by side, at
tiers that this machine can emulate; nothing was tuned to any of these points. Past them, at TB/s, there is
only the simulation.

"""


_READAHEAD = """The windows of the kernel's readahead are told from where the reader paused, and each is asked for when the reader
comes to the one before it; see [design](design.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path, required=True, help="that of docs/findings-v3.csv")
    parser.add_argument(
        "--decode", type=Path, required=True, help="results of tools/decode for the preset tiny"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hbf-simulation-") as name:
        folder = Path(name)
        parts = [_INTRO, _kv(options.model.absolute(), folder), _staging(options.model.absolute(), folder)]
        parts += [_decode(options.decode, folder), _machine()]
    (DOCS / "simulation.md").write_text("\n".join(parts))


def _kv(model: Path, folder: Path) -> str:
    """KV replay on real mounts of every tier."""
    described = read(model)
    point = folder / "mnt"
    point.mkdir()
    rows = []
    for prefetch in (0, 1):
        spill = Spill(
            kv_bytes=kv.bytes_per_token(described),
            layers=kv.number(described, "block_count"),
            context=SPILLED_TOKENS,
            resident=0,
            compute_seconds=COMPUTE_SECONDS,
            depth=4,
            chunk_bytes=1 << 19,
            prefetch=prefetch,
        )
        for mbps, lat in KV_TIERS:
            spec = TierSpec(mbps, lat)
            with tied.mounted(MountConfig(model, point, spec)) as mount:
                measured = kv_replay.replay(spill, mount / "model.gguf", KV_TOKENS).mean_seconds
            seconds = simulate(spill, spec, KV_TOKENS).seconds
            simulated = sum(seconds) / len(seconds)
            rows.append(_row(f"{mbps:g}/{lat:g}, prefetch {prefetch}", 1 / measured, 1 / simulated))
    about = (
        f"## KV replay\n\n{SPILLED_TOKENS} spilled tokens of {model.name}'s geometry "
        f"({format_size(spill.token_bytes)} a token) in chunks of 512 KiB, 4 in flight, {COMPUTE_SECONDS * 1e3:g} ms of "
        f"computing a token, tokens/s over {KV_TOKENS} tokens.\n"
    )
    return f"{about}\n{_table(rows)}"


def _staging(model: Path, folder: Path) -> str:
    """A trace at full speed against the stage times of the findings."""
    reads, _ = _recorded(model, folder, "staging", ["-p", "8", "-n", "1"])
    measured: dict[tuple[float, float], list[float]] = defaultdict(list)
    with (DOCS / "findings-v3.csv").open() as file:
        for row in csv.DictReader(file):
            if row["mode"] == "mmap" and row["valid"] == "True":
                measured[float(row["tier_mbps"]), float(row["tier_lat_ms"])].append(
                    float(row["stage_seconds"])
                )
    rows = []
    for (mbps, lat), seconds in sorted(measured.items()):
        found = chains.elsewhere(reads, [], TierSpec(mbps, lat))
        rows.append(_row(f"{mbps:g}/{lat:g}", statistics.median(seconds), found["stage_seconds"]))
    about = (
        f"## Trace replay: stage time\n\nOne llama-bench on {model.name} recorded on an unthrottled mount "
        f"({len(reads)} reads), replayed on the tiers of [findings-v3](findings-v3.md): seconds, measured being the "
        "median of the valid repeats of mode mmap.\n"
    )
    return f"{about}\n{_READAHEAD}\n{_table(rows)}"


def _decode(results: Path, folder: Path) -> str:
    """A trace of decode from one tier against the speeds measured on others."""
    documents = [
        document
        for document in Results(results).all()
        if document["cell"]["layout"]["policy"] == "pin" and "metrics" in document
    ]
    first = documents[0]["cell"]["bench"]
    model = cache_dir() / "tiny.gguf"
    measured: dict[tuple[int, float], list[float]] = defaultdict(list)
    for document in documents:
        cell = document["cell"]
        measured[cell["layout"]["resident_bytes"], cell["tier_mbps"]].append(document["metrics"]["tg"])
    rows = []
    for budget in sorted({budget for budget, _ in measured}):
        stream = ["--mode", "stream", "--resident", str(budget), "--mbps", str(TRACE_MBPS)]
        reads, phases = _recorded(
            model, folder, f"decode-{budget}", [*stream, "-p", "0", "-n", str(first["n_gen"])]
        )
        for (held, mbps), speeds in sorted(measured.items()):
            if held == budget:
                found = chains.elsewhere(reads, phases, TierSpec(mbps))
                rows.append(_row(f"{mbps:g}, {format_size(budget)}", statistics.median(speeds), found["tg"]))
    about = (
        f"## Trace replay: decode\n\ntiny decoding from {TRACE_MBPS} MB/s with each resident budget, recorded once and "
        "replayed on the tiers of [decode-from-tier](decode-from-tier.md): tokens/s.\n"
    )
    return f"{about}\n{_table(rows)}"


def _recorded(model: Path, folder: Path, name: str, arguments: list[str]) -> tuple[list[Read], list[Phase]]:
    """The reads of one `hbf bench`, and its phases."""
    trace, output = folder / f"{name}.trace", folder / name
    line = [
        sys.executable,
        "-m",
        "hbf_fuse",
        "bench",
        "-m",
        str(model),
        "--trace",
        str(trace),
        "-o",
        str(output),
    ]
    subprocess.run([*line, *arguments], check=True, stdout=subprocess.DEVNULL)
    (run,) = (output / "runs").glob("*.json")
    phases = [Phase(**phase) for phase in json.loads(run.read_text())["llama_bench"]["phases"]]
    return attribution.of_file(Trace.parse(trace.read_bytes()), "model.gguf"), phases


def _row(point: str, measured: float, simulated: float) -> dict[str, Any]:
    return {
        "point": point,
        "measured": measured,
        "simulated": simulated,
        "error": (simulated / measured - 1) * 100,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    errors = [abs(row["error"]) for row in rows]
    shown = [
        {
            "tier (MB/s/ms)": row["point"],
            "measured": f"{row['measured']:.4g}",
            "simulated": f"{row['simulated']:.4g}",
            "error %": f"{row['error']:+.2f}",
        }
        for row in rows
    ]
    verdict = (
        f"Error: median {statistics.median(errors):.2f}%, at most {max(errors):.2f}%, {len(rows)} points.\n"
    )
    return f"{table(tuple(shown[0]), shown)}\n{verdict}"


def _machine() -> str:
    facts = machine.facts()
    return (
        f"## Measured on\n\n{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, hbf-fuse "
        f"{facts['hbf_fuse']}, {machine.now()['time']}. Do it again: `tools/simulation`.\n"
    )


if __name__ == "__main__":
    main()
