"""fio reads and verifies a throttled and an unthrottled mount, in every way, for a given time or number of bytes.

The source is written once with fio's own checksums, one in every 4 KiB. A round is one pass over it through one of
the mounts: an I/O engine, sequential or random, 4 KiB to 4 MiB at a time, 1 to 64 jobs, each with a part
of its own. All combinations run in a random order, repeatedly. Prints JSON: bytes
verified and mismatches, rates, and the servers' memory and descriptors over time.

    tools/bench load                              every engine once, a minute or two
    tools/bench load --soak 30 --gb 200 --markdown docs/load.md
"""

import argparse
import contextlib
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from pages import mark

from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import format_size, mbps, parse_size

ENGINES = {"sync": 0, "psync": 0, "mmap": 0, "libaio": 1, "io_uring": 1}
"""fio's I/O engines, and whether they read past the page cache."""
PATTERNS = ("read", "randread")
BLOCK_SIZES = (4 << 10, 64 << 10, 128 << 10, 1 << 20, 4 << 20)
JOBS = (1, 4, 16, 64)
DEPTH = 8
VERIFY = ("--verify=crc32c", "--verify_interval=4096")
COMPLAINT = re.compile(r"verify failed at|verify: bad")
"""fio's message for a wrong block. Its exit code and total_err are 0 nevertheless if a job only reads (3.33)."""
TIERS = {"throttled": TierSpec(500, 0.1), "unthrottled": TierSpec()}

LONGEST_ROUND = 20
"""Seconds after which a slow round is cut short."""
HANG_SECONDS = 300
"""A round that takes longer than this hangs."""


class Way(NamedTuple):
    """How one round reads."""

    mount: str
    engine: str
    pattern: str
    block_size: int
    jobs: int


@dataclass
class Round:
    """The result of one round: bytes that fio verified, and its errors, mismatches included."""

    way: Way
    nbytes: int
    seconds: float
    errors: int
    said: str


@dataclass
class Watched:
    """A mount and its server's use over time: (seconds, bytes of its own memory, descriptors)."""

    point: Path
    server: psutil.Process
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def sample(self, seconds: float) -> None:
        memory = self.server.memory_info()
        self.samples.append((seconds, memory.rss - memory.shared, self.server.num_fds()))

    def to_dict(self) -> dict[str, Any]:
        """Begin, end, maximum, and the median of each quarter. Also the trend over the second half, when all
        threads have been started.
        """
        late = self.samples[len(self.samples) // 2 :]
        minutes = [seconds / 60 for seconds, _, _ in late]
        served = client.read_hidden(self.point, "stats.json")
        return {
            "served_bytes": served["bytes_read"],
            "failed_reads": served["failed"],
            "memory_bytes": self._of(1)
            | {"slope_per_minute": slope(minutes, [memory for _, memory, _ in late])},
            "descriptors": self._of(2)
            | {"slope_per_minute": slope(minutes, [count for _, _, count in late])},
        }

    def _of(self, column: int) -> dict[str, Any]:
        values = [sample[column] for sample in self.samples]
        bounds = [len(values) * quarter // 4 for quarter in range(5)]
        quarters = [statistics.median(values[a:b] or values) for a, b in itertools.pairwise(bounds)]
        return {"begin": values[0], "end": values[-1], "most": max(values), "quarters": quarters}


def slope(minutes: list[float], values: list[int]) -> float | None:
    """Growth of a value in a minute, by least squares; None for less than a minute."""
    if minutes[-1] - minutes[0] < 1:
        return None
    return round(statistics.linear_regression(minutes, values).slope, 2)


def write_source(path: Path, size: int) -> None:
    """Write a file of which fio can verify any part."""
    _fio("--rw=write", f"--filename={path}", f"--size={size}", "--bs=1M", "--do_verify=0", *VERIFY)


def available_engines(path: Path) -> dict[str, str]:
    """fio's engines, each with the reason why it cannot be used here, or ""."""
    reasons = {}
    for engine, direct in ENGINES.items():
        said = _fio(
            "--rw=read", "--readonly", f"--filename={path}", "--size=4096", "--bs=4096",
            f"--ioengine={engine}", f"--direct={direct}",
        )  # fmt: skip
        reasons[engine] = "" if said.returncode == 0 else _last_line(said.stderr)
    return reasons


def read_once(path: Path, size: int, way: Way, seed: int) -> Round:
    """One round. HbfError if it hangs."""
    begin = time.monotonic()
    said = _fio(
        f"--filename={path}", "--readonly", f"--rw={way.pattern}", f"--bs={way.block_size}",
        f"--ioengine={way.engine}", f"--direct={ENGINES[way.engine]}", f"--iodepth={DEPTH}",
        f"--numjobs={way.jobs}", *_parts(size, way), f"--runtime={LONGEST_ROUND}",
        "--group_reporting", "--continue_on_error=all", "--verify_fatal=1", f"--randseed={seed}", *VERIFY,
    )  # fmt: skip
    seconds = time.monotonic() - begin
    try:
        # fio prints its complaints before the JSON, on the same stream.
        (job,) = json.loads(said.stdout[said.stdout.index("{") :])["jobs"]
    except ValueError as error:
        raise HbfError(f"fio failed: {_last_line(said.stderr or said.stdout)}") from error
    # Two sources: fio's complaints, and the error with which verify_fatal ends the job.
    complaints = len(COMPLAINT.findall(said.stderr))
    errors = max(complaints, job.get("total_err", 0), int(bool(said.returncode or job["error"])))
    return Round(way, job["read"]["io_bytes"], seconds, errors, _last_line(said.stderr) if errors else "")


def _parts(size: int, way: Way) -> tuple[str, ...]:
    """Each job reads a part of its own."""
    part = size // way.jobs // way.block_size * way.block_size
    if way.engine == "mmap":
        # fio 3.33's mmap engine ignores the offset and maps the beginning of the file, also without a mount.
        return f"--size={size}", f"--io_size={part}"
    return f"--size={part}", f"--offset_increment={part}"


def _fio(*options: str) -> "subprocess.CompletedProcess[str]":
    line = ["fio", "--name=load", "--output-format=json", *options]
    with tempfile.TemporaryDirectory(prefix="hbf-fio-") as folder:
        try:
            return subprocess.run(
                line, cwd=folder, capture_output=True, text=True, check=False, timeout=HANG_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise HbfError(f"no end within {HANG_SECONDS} s: {' '.join(line)}") from error


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def ways(engines: list[str], size: int, brief: bool) -> Iterator[Way]:
    """How to read in each round, endlessly. brief: every engine and pattern once on each mount."""
    possible = [
        Way(*chosen)
        for chosen in itertools.product(TIERS, engines, PATTERNS, BLOCK_SIZES, JOBS)
        if chosen[3] * chosen[4] <= size
    ]
    if brief:
        for kind in itertools.product(TIERS, engines, PATTERNS):
            yield random.choice([way for way in possible if way[:3] == kind])  # noqa: S311
        return
    while True:
        yield from random.sample(possible, len(possible))


@contextlib.contextmanager
def watched(source: Path, point: Path, spec: TierSpec) -> Iterator[Watched]:
    """A mount of the source, and its server."""
    point.mkdir()
    with child.mounted(MountConfig(source, point, spec)) as mount:
        yield Watched(mount, psutil.Process(client.read_hidden(mount, "spec.json")["pid"]))


def run(folder: Path, size: int, minutes: float, gigabytes: float) -> dict[str, Any]:
    """Read until both limits are reached. If neither is given: every engine and pattern once."""
    source = folder / "source"
    write_source(source, size)
    left_out = {engine: why for engine, why in available_engines(source).items() if why}
    engines = [engine for engine in ENGINES if engine not in left_out]
    rounds: list[Round] = []
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        mounts = {
            name: stack.enter_context(watched(source, folder / name, spec)) for name, spec in TIERS.items()
        }
        for seed, way in enumerate(ways(engines, size, brief=not (minutes or gigabytes))):
            rounds.append(read_once(mounts[way.mount].point / "model.gguf", size, way, seed))
            seconds = time.monotonic() - begin
            for mount in mounts.values():
                mount.sample(seconds)
            verified = sum(done.nbytes for done in rounds)
            print(
                f"\rload: {seconds / 60:.1f} min, {verified / 1e9:.1f} GB, {sum(r.errors for r in rounds)} errors",
                end="", file=sys.stderr, flush=True,
            )  # fmt: skip
            if (minutes or gigabytes) and seconds >= 60 * minutes and verified >= gigabytes * 1e9:
                break
        print(file=sys.stderr)
        held = {name: {"tier": str(TIERS[name]), **mount.to_dict()} for name, mount in mounts.items()}
    return {
        "verified_bytes": sum(done.nbytes for done in rounds),
        "errors": sum(done.errors for done in rounds),
        "failures": [{**done.way._asdict(), "said": done.said} for done in rounds if done.errors][:20],
        "seconds": round(time.monotonic() - begin, 1),
        "rounds": len(rounds),
        "slowest_round": _slowest(rounds),
        "mounts": held,
        "mbps_median": rates(rounds),
        "engines_left_out": left_out,
        "file_bytes": size,
        "environment": {**machine.facts(), **machine.now()},
    }


def _slowest(rounds: list[Round]) -> dict[str, Any]:
    slowest = max(rounds, key=lambda done: done.seconds)
    return {**slowest.way._asdict(), "seconds": round(slowest.seconds, 1), "nbytes": slowest.nbytes}


def rates(rounds: list[Round]) -> dict[str, float]:
    """Median decimal MB/s of fio's rounds with each engine on each mount, process start and checksums included."""
    found: dict[str, list[float]] = {}
    for done in rounds:
        found.setdefault(f"{done.way.mount} {done.way.engine} {done.way.pattern}", []).append(
            mbps(done.nbytes, done.seconds) or 0.0
        )
    return {name: round(statistics.median(values), 1) for name, values in sorted(found.items())}


def page(result: dict[str, Any], command: str) -> str:
    """docs/load.md."""
    facts = result["environment"]
    return "\n".join(
        [
            mark("load") + "# Load",
            "",
            f"Written by `{command}`: fio reads two mounts of one file, one at a time, in random order: I/O engines "
            f"({', '.join(ENGINES)}), sequential and random, blocks of 4 KiB to 4 MiB, 1 to 64 jobs. It verifies a checksum in "
            "every 4 KiB. Every round starts new reader processes.",
            "",
            f"{result['verified_bytes'] / 1e9:.1f} GB read and verified in {result['seconds'] / 60:.1f} minutes, "
            f"{result['rounds']} rounds: **{result['errors']} mismatches or errors**. Engines that could not be used "
            f"here: {', '.join(result['engines_left_out']) or 'none'}.",
            "",
            "| mount | served | memory by quarter | most | growth a minute | descriptors by quarter | most | growth a minute |",
            "|---|---:|---|---:|---:|---|---:|---:|",
            *map(_row, result["mounts"].values()),
            "",
            "Memory is the server's own (resident less shared), as medians of each quarter of the time. Growth is the slope "
            "over the second half. Buffers that fill up at the beginning have a fixed size: the last 65,536 reads (3 MiB), 1,024 "
            "readers' lateness, at most 16 idle threads.",
            "",
            f"{machine.described(facts)}, hbf-fuse {facts['hbf_fuse']}, {facts['time']}, load average "
            f"{facts['load_1min']:.1f}.",
            "",
        ]
    )


def _row(mount: dict[str, Any]) -> str:
    memory, held = mount["memory_bytes"], mount["descriptors"]
    sizes = ", ".join(map(format_size, memory["quarters"]))
    counts = ", ".join(f"{count:g}" for count in held["quarters"])
    grown = "too short" if (rate := memory["slope_per_minute"]) is None else format_size(rate)
    more = "too short" if (rate := held["slope_per_minute"]) is None else f"{rate:g}"
    return (
        f"| {mount['tier']} | {format_size(mount['served_bytes'])} | {sizes} | {format_size(memory['most'])} | {grown} "
        f"| {counts} | {held['most']} | {more} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="512M", type=parse_size, help="of the source, a multiple of 4M")
    parser.add_argument(
        "--soak", default=0.0, type=float, metavar="MINUTES", help="read for at least this long"
    )
    parser.add_argument("--gb", default=0.0, type=float, help="read at least this much, in decimal GB")
    parser.add_argument("--folder", type=Path, help="where to work (default: the temporary directory)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write it as a page")
    options = parser.parse_args()
    if options.size % BLOCK_SIZES[-1] or not options.size:
        parser.error("--size must be a multiple of 4M")
    with tempfile.TemporaryDirectory(prefix="hbf-load-", dir=options.folder) as folder:
        try:
            result = run(Path(folder), options.size, options.soak, options.gb)
        except HbfError as error:
            sys.exit(f"load: {error}")
    if options.markdown:
        how = f"--soak {options.soak:g} --gb {options.gb:g}" if options.soak or options.gb else ""
        options.markdown.write_text(page(result, f"tools/bench load {how}".strip()))
    print(json.dumps(result, indent=1))
    sys.exit(1 if result["errors"] else 0)


if __name__ == "__main__":
    main()
