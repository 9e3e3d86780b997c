"""Jitter, flash planes and queue depth on real mounts, compared with virtual time: rates and percentiles of reads.

Every point is a fresh mount with compiled readers past the page cache. Each reads its own pieces one after the other. In
virtual time, the same number of readers does the same. Writes its section of docs/simulation.md.

    tools/bench detail
"""

import argparse
import heapq
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.host import machine
from hbf_fuse.mount import child, floor, probe
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.report.tables import table
from hbf_fuse.tier import Tier, TierSpec

PAGE = Path(__file__).parents[2] / "docs/simulation.md"
BEGIN, END = "<!-- written by tools/bench detail -->", "<!-- end of what tools/bench detail writes -->"
FILE_BYTES = 1 << 28
SIZE = 1 << 16
SECONDS = 4.0
PERCENTILES = (50, 95)


@dataclass(frozen=True)
class Point:
    """A tier, and its number of readers."""

    kind: str
    spec: TierSpec
    readers: int


POINTS = [
    *(
        Point("jitter", TierSpec(500, 2, jitter), readers)
        for jitter in ("uniform:1", "normal:0.3", "exponential:1", "normal:0.2+tail:0.02,10")
        for readers in (1, 4)
    ),
    *(
        Point("planes", TierSpec(1000, 0.2, planes=planes, page_bytes=32_768, t_read_us=t_read), readers)
        for planes, t_read, readers in ((1, 500, 1), (4, 1000, 4), (8, 2000, 8), (13, 1000, 4))
    ),
    *(Point("depth", TierSpec(1000, 4, depth=depth), 8) for depth in (1, 2, 4, 8)),
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hbf-detail-") as folder:
        rows = measured(Path(folder), options.repeats)
    print(json.dumps(rows, indent=2))
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(
        f"{before.rstrip()}\n\n{section(rows)}\n{rest.partition(END)[2].lstrip()}".rstrip() + "\n"
    )


def measured(folder: Path, repeats: int) -> list[dict[str, float | str]]:
    """A row for each point: medians of the interleaved repeats, and the result in virtual time."""
    folder.mkdir(exist_ok=True)
    source, mountpoint = folder / "noise", folder / "mnt"
    with source.open("wb") as file:
        for _ in range(FILE_BYTES >> 24):
            file.write(os.urandom(1 << 24))
    mountpoint.mkdir()
    runs: dict[Point, list[tuple[float, ...]]] = {point: [] for point in POINTS}
    for _ in range(repeats):
        for point in POINTS:
            runs[point].append(_figures(*_on_a_mount(point, source, mountpoint)))
    return [_row(point, runs[point]) for point in POINTS]


def section(rows: Sequence[dict[str, float | str]]) -> str:
    """This section of the page."""
    errors, facts = [abs(float(row["rate error %"])) for row in rows], machine.facts()
    shown = [
        {
            name: value if isinstance(value, str) else f"{value:+.2f}" if "%" in name else f"{value:.4g}"
            for name, value in row.items()
        }
        for row in rows
    ]
    return (
        f"{BEGIN}\n\n## Jitter, planes and queue depth\n\nCompiled readers past the page cache, {SIZE >> 10} KiB a read, one in "
        f"flight each, for about {SECONDS:g} s. In virtual time, the same number of readers does the same. "
        "Medians of the repeats.\n\n"
        f"{table(tuple(shown[0]), shown)}\nError of the rate: median {statistics.median(errors):.2f}%, at most {max(errors):.2f}%, "
        f"{len(errors)} points. In virtual time, the readers of several planes stay in step and never use the same plane at "
        "once. On a real machine a reader is late now and then and meets another on a plane, which raises the 95th "
        "percentile.\n\n"
        f"{machine.described(facts)}, {machine.now()['time']}. Repeat it with `tools/bench detail`.\n\n{END}\n"
    )


def _reads(point: Point) -> int:
    """Reads per reader, so that it takes about SECONDS; at most as many as the file has pieces."""
    _, seconds = _in_virtual_time(point, 200)
    return max(50, min(FILE_BYTES // SIZE // point.readers, round(200 * SECONDS / seconds)))


def _on_a_mount(point: Point, source: Path, mountpoint: Path) -> tuple[list[float], float]:
    """The time of every read in us, and the time from first to last in s."""
    with child.mounted(MountConfig(source, mountpoint, point.spec)) as mount:
        fd = os.open(mount / "model.gguf", os.O_RDONLY | os.O_DIRECT)
        line = probe.command(floor.lean_library(), fd)
        readers = [
            subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[fd])
            for _ in range(point.readers)
        ]
        os.close(fd)
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        for start, reader in enumerate(readers):
            assert reader.stdin is not None
            reader.stdin.write(probe.order(SIZE, _reads(point), start, point.readers))
            reader.stdin.flush()
        said = [json.loads(reader.communicate()[0]) for reader in readers]
    times = [time / 1e3 for one in said for time in one["times"]]
    return times, (max(one["end"] for one in said) - min(one["begin"] for one in said)) / 1e9


def _in_virtual_time(point: Point, reads: int) -> tuple[list[float], float]:
    tier, times = Tier(point.spec), []
    waiting = [(0, 0, number) for number in range(point.readers)]
    last = 0
    while waiting:
        arrival, done, number = heapq.heappop(waiting)
        due = tier.reserve(arrival, (done * point.readers + number) * SIZE, SIZE)
        times.append((due - arrival) / 1e3)
        last = max(last, due)
        if done + 1 < reads:
            heapq.heappush(waiting, (due, done + 1, number))
    return times, last / 1e9


def _figures(times: list[float], seconds: float) -> tuple[float, ...]:
    """MB/s, then the percentiles in us."""
    cuts = statistics.quantiles(times, n=100)
    return len(times) * SIZE / seconds / 1e6, *(cuts[percentile - 1] for percentile in PERCENTILES)


def _row(point: Point, runs: list[tuple[float, ...]]) -> dict[str, float | str]:
    found = [statistics.median(figures) for figures in zip(*runs, strict=True)]
    model = _figures(*_in_virtual_time(point, _reads(point)))
    row: dict[str, float | str] = {"tier": str(point.spec), "readers": str(point.readers)}
    row |= {"MB/s": found[0], "virtual MB/s": model[0], "rate error %": (found[0] / model[0] - 1) * 100}
    for percentile, here, there in zip(PERCENTILES, found[1:], model[1:], strict=True):
        row |= {
            f"p{percentile} us": here,
            f"virtual p{percentile}": there,
            f"p{percentile} error %": (here / there - 1) * 100,
        }
    return row


if __name__ == "__main__":
    main()
