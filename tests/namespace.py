"""A private mount namespace in which other users can run this code. Mounts stay inside.

/dev/fuse has the mode that udev gives it (0666). /etc/fuse.conf and /etc/fstab are the test's own, /sbin has
mount.hbf, and any user may read the interpreter, packages and code. Nothing outside changes.
"""

import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import hbf_fuse

USER, STRANGER = 65534, 65533
_INTERPRETER = Path(os.path.realpath(sys.executable)).relative_to(sys.base_prefix)
# What other tests have mounted was copied into the namespace. Kept, it would outlive their unmounting.
_ENTER = """
set -e
umount --all --lazy --no-canonicalize --types fuse.hbf || true
mount -t tmpfs -o mode=755 hbf-test "$1"
cd "$1"
mkdir python site hbf_fuse work sbin
chown "$2:$2" work
bind() { mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
bind "$3" python
bind "$4" site
bind "$5" hbf_fuse
mknod -m 666 fuse c 10 229
touch fuse.conf fstab
mount --bind fuse /dev/fuse
mount --bind fuse.conf /etc/fuse.conf
mount --bind fstab /etc/fstab
cat > sbin/mount.hbf <<END
#!/bin/sh
export PYTHONPATH=$1:$1/site LD_LIBRARY_PATH=$1/python/lib PYTHONDONTWRITEBYTECODE=1
exec $1/python/$6 -c 'from hbf_fuse.cli.mount_helper import main; main()' "\\$@"
END
chmod 755 sbin/mount.hbf
ln -s mount.hbf sbin/mount.fuse.hbf
mount -t overlay -o "lowerdir=$1/sbin:$(realpath /sbin)" hbf-test "$(realpath /sbin)"
echo ready
exec sleep 600
"""


@dataclass
class Namespace:
    """Where commands run. folder: its name inside; `work` in it belongs to USER, and is the current
    directory.
    """

    folder: Path
    holder: int

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def python(self) -> Path:
        return self.folder / "python" / _INTERPRETER

    def argv(self, *command: object, uid: int = USER, **env: str) -> list[str]:
        """The command line that runs a command inside as a user, in an environment of its own."""
        clean = {
            "PATH": "/usr/bin:/bin:/usr/sbin:/sbin",
            "PYTHONPATH": f"{self.folder}:{self.folder / 'site'}",
            "LD_LIBRARY_PATH": str(self.folder / "python/lib"),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.work),
            **env,
        }
        return [
            *("nsenter", f"--mount=/proc/{self.holder}/ns/mnt", f"--wd={self.folder}", "--"),
            *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
            *("env", "-i", "-C", str(self.work), *(f"{name}={value}" for name, value in clean.items())),
            *map(str, command),
        ]

    def run(self, *command: object, uid: int = USER, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run to the end."""
        argv = self.argv(*command, uid=uid, **env)
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )

    def sh(self, script: str, uid: int = USER) -> str:
        """The output of a script that must succeed."""
        said = self.run("sh", "-ec", script, uid=uid)
        assert said.returncode == 0, said
        return said.stdout

    def hbf(self, *arguments: object, uid: int = USER, **env: str) -> "subprocess.CompletedProcess[str]":
        """`hbf ...`, run to the end."""
        said = self.run(self.python, "-m", "hbf_fuse", *arguments, uid=uid, **env)
        assert "Traceback" not in said.stderr, said.stderr
        return said

    def processes(self) -> list[int]:
        """All processes inside, except the one that holds the namespace open."""
        ours = Path(f"/proc/{self.holder}/ns/mnt").readlink()
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/mnt").readlink() == ours:
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self.holder]


@contextmanager
def entered() -> Iterator[Namespace]:
    """A namespace until the end of the block. Then all processes and mounts inside end, too."""
    _skip_unless_possible()
    folder = Path(tempfile.mkdtemp(prefix="hbf-test-"))
    folder.chmod(0o755)
    paths = [
        sys.base_prefix,
        site.getsitepackages()[0],
        str(Path(hbf_fuse.__file__).parent),
        str(_INTERPRETER),
    ]
    line = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        _ENTER,
        "sh",
        str(folder),
        str(USER),
    ]
    holder = subprocess.Popen([*line, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    namespace = Namespace(folder, holder.pid)
    try:
        if not holder.stdout or holder.stdout.readline() != "ready\n":
            said = holder.communicate(timeout=10)[1].strip().splitlines() or ["no message"]
            pytest.skip(f"no private mount namespace with a /dev/fuse of its own here: {said[-1]}")
        if namespace.run("true").returncode:
            pytest.skip(f"user {USER} cannot go to {folder}")
        yield namespace
    finally:
        if holder.poll() is None:
            for pid in namespace.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        holder.kill()
        holder.communicate()
        # Outside, it was always empty. Never remove a tree in which something might still be mounted.
        folder.rmdir()


def _skip_unless_possible() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for tool in ("unshare", "nsenter", "setpriv", "fusermount3"):
        if not shutil.which(tool):
            pytest.skip(f"there is no {tool}")
    if not Path(shutil.which("fusermount3") or "").stat().st_mode & 0o4000:
        pytest.skip("fusermount3 is not setuid here")
