"""Whether a resident budget holds: processes read a mount for minutes while mincore(2) is watched.

Prints JSON, per policy: the largest resident set, compared with the budget and one readahead window, and the number
of passes that were read and verified by their hash.

    tools/bench residency --seconds 120 --readers 4
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from readers import SCRIPT, make_source

from hbf_fuse.fs.placement import POLICIES, Layout
from hbf_fuse.host import machine
from hbf_fuse.host.residency import resident_bytes
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import BUDGET_READAHEAD_KIB, MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import parse_size

WINDOW_BYTES = 2 * BUDGET_READAHEAD_KIB << 10
"""FADV_SEQUENTIAL doubles the readahead."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="256M", type=parse_size)
    parser.add_argument("--resident", default="64M", type=parse_size)
    parser.add_argument("--mbps", default=800.0, type=float)
    parser.add_argument("--seconds", default=120.0, type=float)
    parser.add_argument("--readers", default=4, type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        source = make_source(Path(name), options.size)
        (Path(name) / "mnt").mkdir()
        policies = {policy: _hold(source, Path(name) / "mnt", policy, options) for policy in POLICIES}
    print(json.dumps({"machine": machine.facts(), "policies": policies}, indent=2))


def _hold(source: Path, point: Path, policy: str, options: argparse.Namespace) -> dict[str, Any]:
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    layout = Layout(resident_bytes=options.resident, policy=policy)
    with child.mounted(MountConfig(source, point, TierSpec(options.mbps), layout=layout)) as mount:
        file, until = mount / "model.gguf", time.time() + options.seconds
        ways = [("read", "mmap")[number % 2] for number in range(options.readers)]
        readers = [
            subprocess.Popen(
                [sys.executable, "-I", SCRIPT, str(file), way, str(until)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for way in ways
        ]
        looks = [0]
        while any(reader.poll() is None for reader in readers):
            looks.append(resident_bytes(file) or 0)
            time.sleep(0.005)
        hashes = [line for reader in readers for line in reader.communicate()[0].split()]
        counted = client.read_hidden(mount, "stats.json")
        after = resident_bytes(file) or 0
    return {
        "budget_bytes": options.resident,
        "most_by_mincore": max(looks),
        "holds": max(looks) <= options.resident + WINDOW_BYTES,
        "looks": len(looks),
        "over_budget_share": sum(look > options.resident for look in looks) / len(looks),
        "counted_at_the_end": counted["resident"]["resident_bytes"],
        "mincore_at_the_end": after,
        "evicted_bytes": counted["resident"]["evicted_bytes"],
        "bytes_read": counted["bytes_read"],
        "passes": len(hashes),
        "wrong_passes": sum(found != expected for found in hashes),
    }


if __name__ == "__main__":
    main()
