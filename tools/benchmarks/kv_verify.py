"""Data that fio and random operations write to kv/, verified under both engines.

fio writes --size in all at random places, several times over, with mixed sizes, and verifies every block (md5), once
past the page cache and once through it; then `tests/fsx.py` compares a file with a shadow after random operations. No
time is measured. Prints JSON; ends with 1 at a mismatch. Needs fio, and 2 GiB of memory.

    tools/bench kv-verify                          20 GB under each engine, 100,000 operations
    tools/bench kv-verify --size 1G --operations 2000 --engines fusepy
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from readers import make_source

from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.units import parse_size

FSX = Path(__file__).parents[2] / "tests/fsx.py"
FILE_BYTES = 512 << 20
KV_BYTES = 3 * FILE_BYTES


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", default="kernel,fusepy", help="[%(default)s]")
    parser.add_argument(
        "--size", default="20G", type=parse_size, help="written under each engine [%(default)s]"
    )
    parser.add_argument("--operations", default=100_000, type=int, help="of the shadow file [%(default)s]")
    options = parser.parse_args()
    fio = shutil.which("fio")
    if not fio:
        sys.exit("bench kv-verify: there is no fio; install it")
    rows = []
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        folder = Path(name)
        source = make_source(folder, 1 << 20)
        (folder / "mnt").mkdir()
        for engine in options.engines.split(","):
            config = MountConfig(source, folder / "mnt", TierSpec(), engine, kv_bytes=KV_BYTES)
            with child.mounted(config) as mount:
                rows += [_fio(fio, mount / "kv", engine, direct, options.size // 2) for direct in (1, 0)]
                rows.append(_shadow(mount / "kv/shadow", engine, options.operations))
            for row in rows[-3:]:
                print(row, file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1))
    sys.exit(any(row["failed"] for row in rows))


def _fio(fio: str, folder: Path, engine: str, direct: int, nbytes: int) -> dict[str, Any]:
    """Two writers with files of their own: each pass writes all blocks once at random, then verifies them."""
    began, loops = time.monotonic(), -(-nbytes // (2 * FILE_BYTES))
    line = [
        fio,
        "--name=verify",
        f"--directory={folder}",
        f"--size={FILE_BYTES}",
        "--numjobs=2",
        "--thread=1",
    ]
    line += ["--rw=randwrite", "--bsrange=4k-1m", "--blockalign=4k", "--ioengine=psync", f"--direct={direct}"]
    line += ["--verify=md5", "--verify_fatal=1", "--do_verify=1", f"--loops={loops}", "--group_reporting"]
    line += ["--output-format=json", "--fallocate=none", "--randseed=7"]
    said = subprocess.run(line, capture_output=True, text=True, check=False)
    written = 0
    if not said.returncode:
        job = json.loads(said.stdout[said.stdout.index("{") :])["jobs"][0]
        written = job["write"]["io_bytes"]
    for file in folder.iterdir():
        file.unlink()
    return {
        "engine": engine,
        "what": f"fio --direct={direct}",
        "written_gb": round(written / 1e9, 1),
        "seconds": round(time.monotonic() - began, 1),
        "failed": said.stderr.strip()[-500:] if said.returncode else "",
    }


def _shadow(file: Path, engine: str, operations: int) -> dict[str, Any]:
    began = time.monotonic()
    line = [sys.executable, str(FSX), str(file), "--operations", str(operations), "--seed", "1"]
    said = subprocess.run(line, capture_output=True, text=True, check=False)
    return {
        "engine": engine,
        "what": f"{operations} random operations",
        "seconds": round(time.monotonic() - began, 1),
        "failed": said.stderr.strip()[-500:] if said.returncode else "",
    }


if __name__ == "__main__":
    main()
