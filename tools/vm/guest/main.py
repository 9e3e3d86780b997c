"""The guest's process 1: mounts what a system has, runs the checks, and powers off whatever happens."""

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
    """Set the system up and run the checks, their results going to the second serial line."""
    for kind, where in MOUNTS:
        subprocess.run(["mount", "-t", kind, kind, where], check=True)
    Path("/tmp").chmod(0o1777)
    # As udev does: the kernel makes it 0600.
    Path("/dev/fuse").chmod(0o666)
    # What is on the disk belongs to whoever made it; to be of use this program must belong to root.
    mounter = Path("/run/bin/fusermount3")
    mounter.parent.mkdir()
    shutil.copyfile("/usr/bin/fusermount3", mounter)
    mounter.chmod(0o4755)
    # As systemd does; without it a group has neither io.max nor memory.max.
    Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+io +memory")
    subprocess.run(["mount", "-t", "ext4", "/dev/vdb1", "/mnt"], check=True)
    subprocess.run(["stty", "-F", "/dev/ttyS1", "raw"], check=True)
    with open("/dev/ttyS1", "w") as results:
        child = subprocess.Popen([sys.executable, "/hbf/checks.py"], stdout=results)
        # Orphans come to process 1, and stay until it has taken note of their end.
        while os.wait()[0] != child.pid:
            pass


os.environ.update(PATH="/hbf/.venv/bin:/run/bin:/usr/bin", HOME="/tmp", LC_ALL="C.UTF-8")
try:
    start()
except Exception:
    # Before the power is off, or nobody would see it.
    traceback.print_exc()
finally:
    subprocess.run(["poweroff", "-f"], check=False)
