"""Rates of writes to kv/, and of reads and writes together, against the device in virtual time.

Every round mounts each engine at each tier once, in a new order. On each mount fio writes past the page cache with
every block size and number of writers, each writer a file of its own; with --mix, so many percent of the requests
are reads. Prints JSON, a row for each combination: median MB/s of reads and writes together, what the device gives
the same requests in a closed loop, the error in percent, and the mount's own verdicts. Needs fio.

    tools/bench writes --rounds 3
    tools/bench writes --tiers 500 --bs 1m --numjobs 4 --mix 70
    tools/bench writes --engines kernel,fusepy --source ~/.cache/hbf/smollm2-135m.gguf
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from readers import make_source

from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.expect import closed_loop
from hbf_fuse.units import parse_size

FILE_BYTES = 64 << 20
REQUEST_BYTES = {"kernel": 1 << 20, "fusepy": 128 << 10}
"""So much of a write is passed on at once."""


def main() -> None:
    options = _options()
    fio = shutil.which("fio")
    if not fio:
        sys.exit("bench writes: there is no fio; install it")
    cells = [(bs, jobs) for bs in options.bs for jobs in options.numjobs]
    turns = [(engine, mbps) for engine in options.engines for mbps in options.tiers]
    runs: dict[tuple[str, float, int, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        folder = Path(name)
        source = options.source or make_source(folder, 16 << 20)
        (folder / "mnt").mkdir()
        for number in range(options.rounds):
            for engine, mbps in random.sample(turns, len(turns)):
                spec = TierSpec(mbps, options.lat, write_mbps=options.write_mbps)
                size = max(options.numjobs) * FILE_BYTES
                for bs, jobs in random.sample(cells, len(cells)):
                    config = MountConfig(source, folder / "mnt", spec, engine, kv_bytes=size)
                    with child.mounted(config) as mount:
                        run = _fio(fio, mount, bs, jobs, options)
                        run["staging"] = client.read_stats(mount)["kv"]["staging"]
                    runs.setdefault((engine, mbps, bs, jobs), []).append(run)
            print(f"round {number + 1}/{options.rounds}", file=sys.stderr, flush=True)
    rows = [_row(key, measured, options) for key, measured in sorted(runs.items())]
    print(json.dumps({"environment": {**machine.facts(), **machine.now()}, "rows": rows}, indent=1))
    for row in rows:
        print(
            f"{row['engine']:8} {row['mbps']:6g} MB/s {row['bs'] >> 10:5} KiB x {row['numjobs']}: "
            f"{row['measured_mbps']:8.2f} of {row['model_mbps']:8.2f} ({row['error_pct']:+.2f}%) {row['verdicts']}",
            file=sys.stderr,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default=["kernel"], type=lambda text: text.split(","))
    parser.add_argument(
        "--tiers", default=[100.0, 250.0, 500.0, 1000.0], type=_floats, help="MB/s with commas"
    )
    parser.add_argument("--lat", default=0.0, type=float, help="latency in ms")
    parser.add_argument("--write-mbps", type=float, help="what the device takes of writes")
    parser.add_argument("--bs", default=[64 << 10, 1 << 20, 4 << 20], type=_sizes, help="with commas")
    parser.add_argument(
        "--numjobs", default=[1, 4], type=lambda text: [int(each) for each in text.split(",")]
    )
    parser.add_argument("--mix", type=int, metavar="PERCENT", help="so many of the requests are reads")
    parser.add_argument("--rounds", default=3, type=int)
    parser.add_argument("--runtime", default=2.0, type=float, help="seconds of each cell")
    parser.add_argument("--source", type=Path, help="the GGUF that is served beside; else zeros")
    return parser.parse_args()


def _fio(fio: str, mount: Path, bs: int, jobs: int, options: argparse.Namespace) -> dict[str, Any]:
    line = [fio, "--name=writes", f"--directory={mount / 'kv'}", f"--size={FILE_BYTES}", "--ioengine=psync"]
    line += ["--direct=1", "--thread=1", "--group_reporting", "--time_based", "--output-format=json"]
    line += [f"--bs={bs}", f"--numjobs={jobs}", f"--runtime={options.runtime:g}", "--ramp_time=200ms"]
    # Scrambling what it writes would be time between writes that is fio's own.
    line += ["--fallocate=none", "--scramble_buffers=0"]
    if options.mix is None:
        line += ["--rw=write"]
    else:
        line += ["--rw=randrw", f"--rwmixread={options.mix}", "--norandommap"]
    said = subprocess.run(line, capture_output=True, text=True, check=False, timeout=options.runtime + 120)
    if said.returncode:
        raise HbfError(f"fio failed: {said.stderr.strip()}")
    job = json.loads(said.stdout[said.stdout.index("{") :])["jobs"][0]
    return {kind: job[kind]["bw_bytes"] / 1e6 for kind in ("read", "write")}


def _row(
    key: tuple[str, float, int, int], runs: list[dict[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    engine, mbps, bs, jobs = key
    request = min(bs, REQUEST_BYTES[engine])
    spec = TierSpec(mbps, options.lat, write_mbps=options.write_mbps)
    model = closed_loop(spec, request, jobs, writes=options.mix is None) or 0.0
    measured = statistics.median(run["read"] + run["write"] for run in runs)
    errors = [run["staging"]["error_pct"] for run in runs]
    return {
        "engine": engine,
        "mbps": mbps,
        "lat_ms": options.lat,
        "bs": bs,
        "numjobs": jobs,
        "mix": options.mix,
        "read_mbps": round(statistics.median(run["read"] for run in runs), 2),
        "measured_mbps": round(measured, 2),
        "model_mbps": round(model, 2),
        "error_pct": round((measured / model - 1) * 100, 2),
        "runs": [round(run["read"] + run["write"], 2) for run in runs],
        "verdicts": dict(Counter(run["staging"]["verdict"] for run in runs)),
        "mounts_error_pct": [None if error is None else round(error, 2) for error in errors],
        "bound_pct": [run["staging"]["bound_pct"] for run in runs],
    }


def _floats(text: str) -> list[float]:
    return [float(each) for each in text.split(",")]


def _sizes(text: str) -> list[int]:
    return [parse_size(each) for each in text.split(",")]


if __name__ == "__main__":
    main()
