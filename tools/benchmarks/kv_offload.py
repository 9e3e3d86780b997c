"""A closed loop as KV offload makes it, on kv/, against the device in virtual time.

As the offload connectors of serving engines do (LMCache, vLLM, SGLang): the keys and values of a prefix are blocks of 0.5
to 4 MiB, each a file. A request brings back the blocks of its prefix that are there, and stores one that is not; when the
space is used up, the blocks that were used longest ago are removed (LRU). Which prefix is asked for follows a power law,
so some are used again and again. Prints JSON: for each cell, MB/s of reads and writes together while they last, what the
same operations give on the device, the error in percent, the share of the time that opening, closing and removing files
took besides, the write amplification, and the mount's verdict.

    tools/bench kv-offload
    tools/bench kv-offload --mbps 500 --blocks 1M --ratios 4 --flash --seconds 5
"""

import argparse
import json
import mmap
import os
import random
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from readers import make_source

from hbf_fuse.host import machine
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.units import parse_size

KV_BYTES = 256 << 20
REQUEST_BYTES = 1 << 20
"""The kernel passes on at most so much at once."""

PREFIXES = 4
"""Prefixes that are asked for, by blocks that fit: more than fit, so that some are removed."""

FLASH = TierSpec(planes=16, page_bytes=16384, t_read_us=40, t_prog_us=200, t_erase_us=2000, block_pages=32)
_FIRST = 16 << 40
_FILE = 1 << 40


class Step(NamedTuple):
    """read: blocks that are brought back; removed: a block that goes for the one that is written."""

    read: tuple[int, ...]
    removed: int | None
    written: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mbps", default="250,500,1000", help="[%(default)s]")
    parser.add_argument("--lat", default=0.1, type=float, help="ms [%(default)s]")
    parser.add_argument("--blocks", default="512K,1M,4M", help="[%(default)s]")
    parser.add_argument(
        "--ratios", default="1,4,10", help="blocks read for each that is written [%(default)s]"
    )
    parser.add_argument("--flash", action="store_true", help="with planes, programs and a translation layer")
    parser.add_argument("--seconds", default=2.0, type=float, help="of each cell, by the model [%(default)s]")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        folder = Path(name)
        source = make_source(folder, 1 << 20)
        (folder / "mnt").mkdir()
        for mbps in map(float, options.mbps.split(",")):
            base = FLASH if options.flash else TierSpec()
            spec = replace(base, bandwidth_mbps=mbps, latency_ms=options.lat)
            for block in map(parse_size, options.blocks.split(",")):
                for ratio in map(int, options.ratios.split(",")):
                    config = MountConfig(source, folder / "mnt", spec, kv_bytes=KV_BYTES)
                    with child.mounted(config) as mount:
                        rows.append(_cell(mount, spec, block, ratio, options.seconds))
                    print(_line(rows[-1]), file=sys.stderr, flush=True)
    errors = sorted(abs(row["error_pct"]) for row in rows)
    summary = {"cells": len(rows), "median_pct": errors[len(errors) // 2], "worst_pct": errors[-1]}
    print(
        json.dumps({"environment": {**machine.facts(), **machine.now()}, **summary, "rows": rows}, indent=1)
    )
    print(summary, file=sys.stderr)


def _cell(mount: Path, spec: TierSpec, block: int, ratio: int, seconds: float) -> dict[str, Any]:
    fill, steps = _workload(block, ratio, seconds, spec)
    device = _Device(spec, block)
    _real(mount / "kv", fill, block)
    device.run(fill)
    before, began = client.read_stats(mount)["kv"], device.now_ns
    moved, took = _real(mount / "kv", steps, block)
    device.run(steps)
    model = (device.now_ns - began) / 1e9
    after, nbytes = client.read_stats(mount)["kv"], sum(len(step.read) + 1 for step in steps) * block
    written = after["bytes_written"] - before["bytes_written"]
    return {
        "mbps": spec.bandwidth_mbps,
        "block": block,
        "ratio": ratio,
        "steps": len(steps),
        "measured_mbps": nbytes / moved / 1e6,
        "model_mbps": nbytes / model / 1e6,
        "error_pct": (model / moved - 1) * 100,
        "names_pct": (1 - moved / took) * 100,
        "write_amplification": (after["bytes_programmed"] - before["bytes_programmed"]) / written,
        "reads_behind": after["reads_behind"] - before["reads_behind"],
        "verdict": after["staging"]["verdict"],
    }


def _workload(block: int, ratio: int, seconds: float, spec: TierSpec) -> tuple[list[Step], list[Step]]:
    """Steps that fill the space, and those that count: about so many seconds of them."""
    draw, fits = random.Random(1), KV_BYTES // block * 9 // 10  # noqa: S311
    held: OrderedDict[int, None] = OrderedDict()
    fill = [Step((), None, number) for number in range(fits)]
    for step in fill:
        held[step.written] = None
    each_ns = ((ratio + 1) * block * 1e3 / (spec.bandwidth_mbps or 1e3)) + (ratio + 1) * spec.latency_ns
    count = max(8, round(seconds * 1e9 / each_ns))
    return fill, list(_steps(draw, held, ratio, count, fits))


def _steps(
    draw: random.Random, held: "OrderedDict[int, None]", ratio: int, count: int, fits: int
) -> Iterator[Step]:
    for _ in range(count):
        # A power law over all prefixes; those that are there are read, the first that is not is stored.
        wanted = [min(int(draw.paretovariate(0.6)) - 1, fits * PREFIXES) for _ in range(ratio)]
        read = tuple(number if number in held else next(iter(held)) for number in wanted)
        for number in read:
            held.move_to_end(number)
        written = next(
            number for number in iter(lambda: draw.randrange(fits * PREFIXES), -1) if number not in held
        )
        removed, _ = held.popitem(last=False)
        if removed in read:
            held[removed] = None
            removed = next(number for number in held if number not in read)
            del held[removed]
        held[written] = None
        yield Step(read, removed, written)


def _real(folder: Path, steps: list[Step], block: int) -> tuple[float, float]:
    """Seconds in which the steps read and write, and that they take in all."""
    buffer = mmap.mmap(-1, block)
    buffer.write(os.urandom(4096) * (block // 4096))
    began, moved = time.monotonic(), 0.0
    for step in steps:
        for number in step.read:
            fd = os.open(folder / str(number), os.O_RDONLY | os.O_DIRECT)
            start = time.monotonic()
            os.preadv(fd, [buffer], 0)
            moved += time.monotonic() - start
            os.close(fd)
        if step.removed is not None:
            (folder / str(step.removed)).unlink()
        fd = os.open(folder / str(step.written), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
        start = time.monotonic()
        os.pwrite(fd, buffer, 0)
        moved += time.monotonic() - start
        os.close(fd)
    return moved, time.monotonic() - began


class _Device:
    """The same steps, one request after the other, in virtual time."""

    def __init__(self, spec: TierSpec, block: int) -> None:
        self.now_ns = 0
        self._tier, self._block, self._page = Tier(spec, KV_BYTES), block, spec.page_bytes

    def run(self, steps: list[Step]) -> None:
        planes = self._tier.planes
        for step in steps:
            for number in step.read:
                self._move(number, self._tier.reserve)
            if step.removed is not None and planes is not None and planes.translation is not None:
                first = (_FIRST + step.removed * _FILE) // self._page
                planes.translation.trim_range(first, first + self._block // self._page)
            self._move(step.written, self._tier.write)

    def _move(self, number: int, how: Any) -> None:
        for at in range(0, self._block, REQUEST_BYTES):
            size = min(REQUEST_BYTES, self._block - at)
            self.now_ns = how(self.now_ns, _FIRST + number * _FILE + at, size)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['mbps']:6g} MB/s {row['block'] >> 10:5} KiB, {row['ratio']:2} read for each written: "
        f"{row['measured_mbps']:7.1f} of {row['model_mbps']:7.1f} MB/s ({row['error_pct']:+.2f}%), "
        f"names {row['names_pct']:.0f}%, amplification {row['write_amplification']:.2f}, {row['reads_behind']} behind, {row['verdict']}"
    )


if __name__ == "__main__":
    main()
