"""The guest's process 1: mounts the usual file systems, runs the checks, and always powers off."""

import os
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("fusectl", "/sys/fs/fuse/connections"),
    ("cgroup2", "/sys/fs/cgroup"),
)


def start() -> None:
    """Set the system up and run the checks. Their results go to the second serial line."""
    for kind, where in MOUNTS:
        subprocess.run(["mount", "-t", kind, kind, where], check=True)
    Path("/tmp").chmod(0o1777)
    # udev does the same: the kernel makes it 0600.
    Path("/dev/fuse").chmod(0o666)
    # Files on the disk belong to the user who made it. This program must belong to root to be of use.
    mounter = Path("/run/bin/fusermount3")
    mounter.parent.mkdir()
    shutil.copyfile("/usr/bin/fusermount3", mounter)
    mounter.chmod(0o4755)
    # systemd does the same. Without it a group has neither io.max nor memory.max.
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+io +memory")
    subprocess.run(["mount", "-t", "ext4", "/dev/vdb1", "/mnt"], check=True)
    subprocess.run(["stty", "-F", "/dev/ttyS1", "raw"], check=True)
    with open("/dev/ttyS1", "w") as results:
        child = subprocess.Popen([sys.executable, "/hbf/checks.py"], stdout=results)
        # Process 1 adopts orphans. They stay as zombies until it waits for them.
        while os.wait()[0] != child.pid:
            pass


os.environ.update(PATH="/hbf/.venv/bin:/run/bin:/usr/bin", HOME="/tmp", LC_ALL="C.UTF-8")
try:
    start()
except Exception:
    # Written before power off, or it would be lost.
    traceback.print_exc()
finally:
    subprocess.run(["poweroff", "-f"], check=False)
