"""Boots stock Debian kernels and checks in each that mounts and limits work there.

    tools/vm/check                                        both kernels of kernels.PACKAGES
    tools/vm/check --kernel linux-image-amd64 --json      another one, its results as JSON lines

Exit code 0 if all is well, 1 if a check failed, 77 if no virtual machine is possible here (one line says
why).
"""

import argparse
import dataclasses
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import disks
import initramfs
import kernels
import qemu
import userland
from debian import Unavailable

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import presets, synth
from hbf_fuse.models.places import cache_dir

SKIPPED = 77
_MIB = 1 << 20


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--kernel", action="append", metavar="PACKAGE", help="a Debian kernel; may be repeated"
    )
    parser.add_argument("--seconds", type=float, default=600, help="for each guest, from power on to off")
    parser.add_argument("--accel", default="tcg", choices=["tcg", "kvm"], help="tcg: software emulation")
    parser.add_argument("--json", action="store_true", help="print each result as a line of JSON")
    options = parser.parse_args()
    # So that processes are ended and disks are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    tell = _as_json if options.json else _as_text
    try:
        runs = [check(package, options, tell) for package in options.kernel or kernels.PACKAGES]
    except HbfError as error:
        print(f"vm: {error}", file=sys.stderr)
        return SKIPPED if isinstance(error, Unavailable) else 1
    return 0 if all(runs) else 1


def check(package: str, options: argparse.Namespace, tell: Callable[[dict[str, Any]], None]) -> bool:
    """Boot a guest with a kernel and print its results. Returns whether all are good.

    Raises Unavailable, or HbfError if QEMU refuses.
    """
    qemu.require()
    kernel = kernels.fetch(package)
    with tempfile.TemporaryDirectory(dir=cache_dir() / "vm") as scratch:
        folder = Path(scratch)
        disks_in_order = [(_system_disk(folder), False), (data_disk(folder), True)]
        initrd, console, results = folder / "initrd", folder / "console", folder / "results"
        initramfs.write(kernel, initrd)
        limits = {"seconds": options.seconds, "accel": options.accel}
        begin = time.monotonic()
        in_time = qemu.boot(kernel.image, initrd, disks_in_order, console, results, **limits)
        seconds = time.monotonic() - begin
        lines = _whole_lines(results)
        ended = in_time and {"end": True} in lines
        if not ended:
            print(console.read_text(errors="replace"), file=sys.stderr)
    checks = [line for line in lines if "check" in line]
    checks.append(_result("the guest came to its end", ended, f"{seconds:.0f} s in all", seconds))
    for line in checks:
        tell({"kernel": kernel.release, **line})
    return all(line["ok"] for line in checks)


def _whole_lines(results: Path) -> list[dict[str, Any]]:
    """The guest's output; its last line may be cut off."""
    *whole, _ = results.read_text(errors="replace").replace("\r", "").split("\n")
    return [json.loads(line) for line in whole]


def _result(name: str, ok: bool, detail: str, seconds: float) -> dict[str, Any]:
    """A result in the format of guest/checks.py."""
    return {"group": "kernel", "check": name, "ok": ok, "detail": detail, "seconds": round(seconds, 1)}


def _system_disk(folder: Path) -> Path:
    root, disk = folder / "root", folder / "system.img"
    root.mkdir()
    userland.write(root)
    disks.write(root, disk, room=32 * _MIB)
    return disk


def data_disk(folder: Path) -> Path:
    """A partitioned disk with a model of about 20 MB on it."""
    content, disk = folder / "data", folder / "data.img"
    content.mkdir()
    small = dataclasses.replace(
        presets.load("tiny"), layers=1, embedding=512, heads=8, ffn=1024, vocabulary=24576
    )
    synth.write(small, content / "model.gguf")
    disks.write_partitioned(content, disk, room=32 * _MIB)
    return disk


def _as_json(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _as_text(line: dict[str, Any]) -> None:
    verdict = "ok    " if line["ok"] else "FAILED"
    print(f"{verdict} {line['kernel']}  {line['check']}  [{line['seconds']} s]  {line['detail']}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
