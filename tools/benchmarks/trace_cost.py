"""The cost of tracing: an unthrottled mount is read with a cold page cache, alternately with --trace and without.

The newest reads are always kept in memory; the cost of this is measured separately. Prints JSON: medians in MB/s,
the median ratio of neighbouring runs, and ns a record.

    tools/bench trace-cost --rounds 15
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from readers import WAYS, make_source, read_rate

from hbf_fuse.host import machine
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe.ring import Ring
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import parse_size

RECORDS = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="512M", type=parse_size)
    parser.add_argument("--rounds", default=15, type=int)
    parser.add_argument("--way", default=WAYS[0], choices=WAYS)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        folder = Path(name)
        source = make_source(folder, options.size)
        (folder / "mnt").mkdir()
        for number in range(options.rounds):
            for which in ("off", "on") if number % 2 else ("on", "off"):
                trace = folder / "trace" if which == "on" else None
                with child.mounted(MountConfig(source, folder / "mnt", TierSpec(), trace=trace)) as mount:
                    rates[which].append(read_rate(mount / "model.gguf", options.way))
    medians = {which: statistics.median(values) for which, values in rates.items()}
    result = {
        "machine": machine.facts(),
        "way": options.way,
        "rounds": options.rounds,
        "mbps": medians,
        "on_against_off": statistics.median(
            on / off for on, off in zip(rates["on"], rates["off"], strict=True)
        ),
        "mbps_runs": {which: [round(value) for value in values] for which, values in rates.items()},
        "ns_per_record_in_memory": _ring_ns(),
    }
    print(json.dumps(result, indent=2))


def _ring_ns() -> float:
    ring = Ring()
    begin = time.perf_counter_ns()
    for place in range(RECORDS):
        ring.add(place, place, place, place, 1 << 20, 1, 2, 0, 0)
    return (time.perf_counter_ns() - begin) / RECORDS


if __name__ == "__main__":
    main()
