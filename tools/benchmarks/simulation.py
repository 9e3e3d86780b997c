"""Writes docs/simulation.md: compares simulation with real mounts, point by point, in one run.

KV replay: the spill pattern of a model on mounts of 12 tiers, without prefetch and with it. Trace replay: one
llama-bench recorded at full speed, compared with the stage times of the 12 reference points; and a decode recorded at
full speed, compared with decode from four tiers.

    tools/bench simulation -m model.gguf     about 20 minutes with a model of 2 GB
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import detail
from pages import mark

from hbf_fuse.gguf import kv, read
from hbf_fuse.host import machine
from hbf_fuse.kv import replay as kv_replay
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.models.choice import preset_model
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.report.tables import table
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import attribution, chains
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.trace import Read, Trace
from hbf_fuse.units import format_size

DOCS = Path(__file__).parent.parent.parent / "docs"
KV_TIERS = [(mbps, lat) for mbps in (100, 250, 500, 1000) for lat in (0, 1, 5)]
KV_TOKENS = 5
SPILLED_TOKENS = 1024
COMPUTE_SECONDS = 0.1
STAGE_TIERS = [(mbps, lat) for mbps in (250, 500, 1000, 2000) for lat in (0, 1, 5)]
DECODE_MBPS = (100, 200, 400, 800)
DECODE_RESIDENT = ("25%", "50%", "75%")
DECODE_TOKENS = 16

_INTRO = """# Simulated against measured

The simulators drive the same device as the mounts (`tier/`), in virtual time. This page compares both, at
tiers that this machine can emulate. Nothing was tuned to these points. For faster tiers, up to TB/s, there is
only the simulation.

"""


_DECODE = """Replay does not know how the threads of llama.cpp wait for each other when reads take longer than in the
recording. So in replay, computing and reading overlap somewhat more than in reality.
"""

_READAHEAD = """The kernel's readahead windows are inferred from where the reader paused. Each window is requested when the reader
reaches the one before it; see [design](design.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "-m", "--model", type=Path, required=True, help="a GGUF of about 2 GB, in memory at best"
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = options.model.absolute()
    with tempfile.TemporaryDirectory(prefix="hbf-simulation-") as name:
        folder = Path(name)
        parts = [mark("simulation") + _INTRO, _kv(model, folder), _staging(model, folder, options.repeats)]
        parts += [_decode(folder, options.repeats), _machine()]
        parts += [detail.section(detail.measured(folder / "detail", options.repeats))]
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
            layers=kv.cached_layers(described),
            context=SPILLED_TOKENS,
            resident=0,
            compute_seconds=COMPUTE_SECONDS,
            depth=4,
            chunk_bytes=1 << 19,
            prefetch=prefetch,
            write_unit=0,
        )
        for mbps, lat in KV_TIERS:
            spec = TierSpec(mbps, lat)
            with child.mounted(MountConfig(model, point, spec)) as mount:
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


def _staging(model: Path, folder: Path, repeats: int) -> str:
    """Replay of a trace recorded at full speed, compared with measured stage times."""
    short = ["-p", "8", "-n", "1"]
    # Twice: in the first run, a virtual machine gets its memory from the host.
    _bench(model, folder, "warm", short)
    reads, _, _ = _bench(model, folder, "staging", short)
    measured: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for repeat in range(repeats):
        for mbps, lat in STAGE_TIERS:
            tier = ["--mbps", str(mbps), "--lat", str(lat)]
            *_, metrics = _bench(model, folder, f"stage-{mbps}-{lat}-{repeat}", [*tier, *short])
            measured[mbps, lat].append(metrics)
    rows = []
    for (mbps, lat), all_metrics in measured.items():
        found = chains.elsewhere(reads, [], TierSpec(mbps, lat))
        rows.append(_judged(f"{mbps:g}/{lat:g}", all_metrics, "stage_seconds", found["stage_seconds"]))
    about = (
        f"## Trace replay: stage time\n\nOne llama-bench on {model.name} recorded on an unthrottled mount "
        f"({len(reads)} reads), replayed on the tiers of the reference. Seconds; measured is the median of "
        f"{repeats} runs of mode mmap.\n"
    )
    return f"{about}\n{_READAHEAD}\n{_table(rows)}"


def _decode(folder: Path, repeats: int) -> str:
    """Replay of a decode trace from one tier, compared with the speeds measured on others."""
    model = preset_model("tiny", lambda _: None)
    rows = []
    for share in DECODE_RESIDENT:
        stream = ["--mode", "stream", "--resident", share, "-p", "0", "-n", str(DECODE_TOKENS)]
        reads, phases, _ = _bench(model, folder, f"decode-{share[:-1]}", stream)
        for mbps in DECODE_MBPS:
            measured = [
                _bench(model, folder, f"decode-{share[:-1]}-{mbps}-{repeat}", [*stream, "--mbps", str(mbps)])[
                    2
                ]
                for repeat in range(repeats)
            ]
            found = chains.elsewhere(reads, phases, TierSpec(mbps))
            rows.append(_judged(f"{mbps:g}, {share}", measured, "tg", found["tg"]))
    about = (
        f"## Trace replay: decode\n\ntiny decoding with each resident budget, recorded once on an unthrottled mount and "
        f"replayed on other tiers. Tokens/s; measured is the median of {repeats} runs.\n"
    )
    return f"{about}\n{_table(rows)}\n{_DECODE}"


def _bench(
    model: Path, folder: Path, name: str, arguments: list[str]
) -> tuple[list[Read], list[Phase], dict[str, Any]]:
    """The reads of one `hbf bench`, its phases, and its metrics."""
    trace, output = folder / f"{name}.trace", folder / name
    line = [
        sys.executable,
        "-P",
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
    document = json.loads(run.read_text())
    phases = [Phase(**phase) for phase in document["llama_bench"]["phases"]]
    reads = attribution.of_files(Trace.parse(trace.read_bytes()), ["model.gguf"])
    trace.unlink()
    return reads, phases, document["metrics"]


def _judged(point: str, measured: list[dict[str, Any]], what: str, simulated: float) -> dict[str, Any]:
    """A row from the valid runs. If none was valid: from all, and marked."""
    valid = [metrics[what] for metrics in measured if metrics["valid"]]
    if valid:
        return _row(f"{point}, {len(valid)}/{len(measured)} valid", statistics.median(valid), simulated)
    every = statistics.median(metrics[what] for metrics in measured)
    return {**_row(f"{point}, outside the envelope", every, simulated), "counts": False}


def _row(point: str, measured: float, simulated: float) -> dict[str, Any]:
    return {
        "point": point,
        "measured": measured,
        "simulated": simulated,
        "error": (simulated / measured - 1) * 100,
        "counts": True,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    errors = [abs(row["error"]) for row in rows if row["counts"]]
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
        f"Error: median {statistics.median(errors):.2f}%, at most {max(errors):.2f}%, {len(errors)} points.\n"
    )
    return f"{table(tuple(shown[0]), shown)}\n{verdict}"


def _machine() -> str:
    facts = machine.facts()
    return (
        f"## Measured on\n\n{machine.described(facts)}, hbf-fuse {facts['hbf_fuse']}, {machine.now()['time']}. "
        "Repeat it with `tools/bench simulation`.\n"
    )


if __name__ == "__main__":
    main()
