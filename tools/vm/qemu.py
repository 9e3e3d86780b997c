"""Boots a guest and waits for its end. No network; software emulation unless told otherwise."""

import shutil
import subprocess
from pathlib import Path

import debian

from hbf_fuse.errors import HbfError
from hbf_fuse.workload import child

PROGRAM = "qemu-system-x86_64"
# Mitigations cost much time under emulation and do not matter for the tests.
_COMMAND_LINE = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"


def require() -> None:
    """Raise debian.Unavailable without QEMU. Called before disks are made, which takes long."""
    if shutil.which(PROGRAM) is None:
        raise debian.Unavailable(f"there is no {PROGRAM}; try tools/setup --vm")


def boot(
    kernel: Path,
    initrd: Path,
    disks: list[tuple[Path, bool]],
    console: Path,
    results: Path,
    *,
    seconds: float,
    accel: str = "tcg",
    memory_mib: int = 1024,
) -> bool:
    """Run a guest until it powers itself off; False if it had to be killed after `seconds`.

    disks: images, from /dev/vda on, and whether the guest may write to them. console: kernel messages
    (ttyS0). results: the guest's output on its second serial line (ttyS1), without kernel messages.
    Raises HbfError if QEMU refuses.
    """
    line = [
        *(PROGRAM, "-accel", accel, "-cpu", "max", "-smp", "2", "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", _COMMAND_LINE),
        *("-serial", f"file:{console}", "-serial", f"file:{results}"),
    ]
    for disk, writable in disks:
        line += [
            "-drive",
            f"file={disk},format=raw,if=virtio,cache=unsafe,readonly={'off' if writable else 'on'}",
        ]
    try:
        ended = child.run_group(line, timeout_seconds=seconds)
    except subprocess.TimeoutExpired:
        return False
    if ended.returncode:
        raise HbfError(f"{PROGRAM} cannot run here: {ended.stderr.strip()[-200:]}")
    return True
