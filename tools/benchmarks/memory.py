"""Error of the memory engine by a clock outside: readers that touch one byte of each chunk of a mapping.

Every cell has fresh memory and a new process. Prints JSON, then a table: by tier, chunk and number of readers the
rate by the reader's clock and the model's, the error of the duration in percent, and of a touch in us; the engine's
own verdict. A cell is good within 1%, or within 2 us a touch. Medians over the rounds.

    tools/bench memory                                   the whole grid, half a minute a round
    tools/bench memory --rounds 5 > memory.json
    tools/bench memory --mbps 2000 --lat 20 --chunk 262144 --readers 1
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hbf_fuse.engine.memory import floor
from hbf_fuse.engine.memory.door import environment
from hbf_fuse.engine.memory.service import Service
from hbf_fuse.fs import Filesystem
from hbf_fuse.host import machine
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.tier import TierSpec, expect
from hbf_fuse.units import parse_size

GOOD_PCT, GOOD_US = 1.0, 2.0
READER = Path(__file__).with_name("memory_reader.c")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mbps", default="2000,5000,8000", help="bandwidths with commas")
    parser.add_argument("--lat", default="5,10,20,50", help="latencies in us")
    parser.add_argument("--chunk", default="65536,262144,2097152", help="bytes that a fault brings")
    parser.add_argument("--readers", default="1,2", help="threads that touch")
    parser.add_argument("--size", default="96M", type=parse_size)
    parser.add_argument("--rounds", default=1, type=int)
    options = parser.parse_args()
    axes = [_numbers(each) for each in (options.mbps, options.lat, options.chunk, options.readers)]
    cells = list(itertools.product(*axes))
    runs: dict[tuple[float, ...], list[dict[str, Any]]] = {cell: [] for cell in cells}
    with tempfile.TemporaryDirectory(prefix="hbf-memory-bench-") as folder:
        reader, source = Path(folder) / "reader", Path(folder).resolve() / "source"
        subprocess.run(["cc", "-O2", "-o", reader, READER, "-pthread"], check=True)  # noqa: S607
        source.write_bytes(os.urandom(options.size))
        for _ in range(options.rounds):
            random.shuffle(cells)
            for cell in cells:
                runs[cell].append(_measured(reader, source, *cell))
    rows = [_summary(cell, of_cell) for cell, of_cell in runs.items()]
    good = sum(row["good"] for row in rows)
    document = {"machine": machine.facts(), "rounds": options.rounds, "good": good, "cells": rows}
    print(json.dumps(document, indent=1))
    _show(rows)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def _measured(
    reader: Path, source: Path, mbps: float, lat_us: float, chunk: float, readers: float
) -> dict[str, Any]:
    spec = TierSpec(mbps, lat_us / 1000, chunk_bytes=int(chunk))
    fs = Filesystem(source, spec)
    fs.served.mapped = service = Service(fs.served)
    known: Floor = floor.measure(expect.mapped_wait_ms(spec))
    service.reckon_with(known)
    with service.door.answering() as place:
        said = subprocess.run(
            [str(reader), str(source), str(int(chunk)), str(int(readers))],
            env={**os.environ, **environment(place)},
            capture_output=True,
            text=True,
            check=True,
        )
        (file,) = fs.hidden.stats_document()["files"].values()
    found = json.loads(said.stdout)
    size = source.stat().st_size
    rate = expect.closed_loop(spec, int(chunk), int(readers))
    model_ns = size * 1e3 / rate if rate else 0.0
    touches = size / chunk / readers
    return {
        "mbps": size * 1e3 / found["ns"],
        "model_mbps": rate,
        "error_pct": (found["ns"] / model_ns - 1) * 100,
        "error_us": (found["ns"] - model_ns) / touches / 1000,
        "p50_us": found["p50_ns"] / 1000,
        "floor_us": known.of(0, 0) / 1000,
        "verdict": file["staging"]["verdict"],
        "staging": {name: file["staging"][name] for name in ("error_pct", "bound_pct", "reasons")},
    }


def _summary(cell: Sequence[float], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = ("mbps", "model_mbps", "error_pct", "error_us", "p50_us", "floor_us")
    row: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in names}
    axes = dict(zip(("tier_mbps", "lat_us", "chunk", "readers"), cell, strict=True))
    good = abs(row["error_pct"]) <= GOOD_PCT or abs(row["error_us"]) <= GOOD_US
    return {**axes, **row, "good": good, "verdicts": [run["verdict"] for run in runs], "runs": list(runs)}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("MB/s", "us", "KiB", "readers", "reached", "model", "error %", "error us", "", "verdict")
    for row in rows:
        table.add_row(
            *(f"{row[name]:g}" for name in ("tier_mbps", "lat_us")),
            f"{row['chunk'] / 1024:g}",
            f"{row['readers']:g}",
            *(f"{row[name]:.0f}" for name in ("mbps", "model_mbps")),
            *(f"{row[name]:+.2f}" for name in ("error_pct", "error_us")),
            "" if row["good"] else "off",
            " ".join(sorted(set(row["verdicts"]))),
        )
    console = Console(stderr=True)
    console.print(table)
    console.print(f"{sum(row['good'] for row in rows)} of {len(rows)} within {GOOD_PCT:g}% or {GOOD_US:g} us")


if __name__ == "__main__":
    main()
