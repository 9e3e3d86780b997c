"""Boots a Debian with systemd in QEMU, uses the units of systemd/ there, and prints a log.

    tools/vm/systemd > docs/systemd-boot.log

Needs root, because the files of a root file system belong to root. The commands are in guest/systemd-log.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import check
import debian_root
import disks
import initramfs
import kernels
import qemu
import userland
from debian import Unavailable

import hbf_fuse
from hbf_fuse.errors import HbfError
from hbf_fuse.models.places import cache_dir

_MIB = 1 << 20
_GUEST = Path(__file__).parent / "guest"
_UNITS = Path(hbf_fuse.__file__).parents[1] / "systemd"
_COMMANDS = {
    "usr/local/bin/hbf": "hbf",
    "usr/local/bin/hbf-mount": "hbf-mount",
    "usr/local/bin/hbf-umount": "hbf-umount",
    "usr/sbin/mount.hbf": "mount.hbf",
}
_DELEGATE = "[Service]\nDelegate=cpu io memory pids\n"
_FSTAB = (
    "/srv/models/model.gguf /mnt/slow hbf ro,noauto,mbps=20,lat=5 0 0\n"
    "/srv/models/model.gguf /mnt/lazy hbf ro,noauto,x-systemd.automount,mbps=20,lat=1 0 0\n"
)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kernel", default=kernels.PACKAGES[0], metavar="PACKAGE", help="a Debian kernel")
    parser.add_argument("--seconds", type=float, default=900, help="from power on to off")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if os.geteuid():
            raise Unavailable("a root file system can only be made as root")
        log, ended = boot(options.kernel, options.seconds)
    except HbfError as error:
        print(f"vm: {error}", file=sys.stderr)
        return check.SKIPPED if isinstance(error, Unavailable) else 1
    print(log.strip())
    return 0 if ended else 1


def boot(package: str, seconds: float) -> tuple[str, bool]:
    """The log of a guest, and whether it finished. Raises Unavailable."""
    qemu.require()
    kernel = kernels.fetch(package)
    with tempfile.TemporaryDirectory(dir=cache_dir() / "vm") as scratch:
        folder = Path(scratch)
        system, data = _system_disk(folder), check.data_disk(folder)
        initramfs.write(kernel, folder / "initrd")
        console, log = folder / "console", folder / "log"
        ended = qemu.boot(
            *(kernel.image, folder / "initrd", [(system, True), (data, True)], console, log), seconds=seconds
        )
        text, end, _ = log.read_text(errors="replace").replace("\r", "").partition("\nthe end\n")
        ended = ended and bool(end)
        if not ended:
            print(console.read_text(errors="replace"), file=sys.stderr)
    return text, ended


def _system_disk(folder: Path) -> Path:
    root, disk = folder / "root", folder / "system.img"
    root.mkdir()
    debian_root.write(root)
    userland.add_project(root)
    for path, command in _COMMANDS.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(f"/hbf/.venv/bin/{command}")
    _add_units(root)
    disks.write(root, disk, room=256 * _MIB)
    return disk


def _add_units(root: Path) -> None:
    units = root / "etc/systemd/system"
    for file in (*_UNITS.glob("*.service"), *_UNITS.glob("*.slice"), _GUEST / "systemd-log.service"):
        shutil.copy2(file, units)
    wanted = units / "multi-user.target.wants"
    wanted.mkdir(exist_ok=True)
    (wanted / "systemd-log.service").symlink_to("../systemd-log.service")
    shutil.copy2(_GUEST / "systemd-log", root / "hbf/systemd-log")
    (root / "etc/hbf").mkdir()
    settings = "HBF_MODEL=/srv/models/model.gguf\nHBF_OPTIONS=--mbps 20 --lat 1\n"
    (root / "etc/hbf/x.env").write_text(settings)
    with (root / "etc/fstab").open("a") as fstab:
        fstab.write(_FSTAB)
    for name in ("x", "slow", "lazy"):
        (root / "mnt" / name).mkdir()
    # The user manager of an ordinary user, from boot on, with the controllers that `hbf run` needs delegated
    # to it.
    (root / "var/lib/systemd/linger").mkdir(parents=True)
    (root / "var/lib/systemd/linger/reader").touch()
    drop_in = units / "user@.service.d"
    drop_in.mkdir()
    (drop_in / "delegate.conf").write_text(_DELEGATE)


if __name__ == "__main__":
    sys.exit(main())
