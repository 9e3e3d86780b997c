"""Unmounts when the server of a mount dies hard. Run as a script: watcher.py MOUNTPOINT, server on stdin.

Stands alone and imports next to nothing, because one of these sleeps beside every mount.
"""

import os
import signal
import sys


def watch(mountpoint: str) -> None:
    """Wait for the server's farewell; if its end of the pipe closes without one, unmount what it left.

    Only a mount that has no server any more is touched: a new one on the same path answers.
    """
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    # systemd ends what is left of a service whose server died: this is what is left, and has yet to unmount.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.read(0, 16):
        return
    try:
        # Not stat: the kernel answers that from its cache for as long as it likes.
        os.statvfs(mountpoint)
    except OSError:
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        os.execvp(command[0], [*command, "--", mountpoint])  # noqa: S606


if __name__ == "__main__":
    watch(sys.argv[1])
