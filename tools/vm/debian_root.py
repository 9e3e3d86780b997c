"""A Debian root file system with systemd, made without running any part of it on this machine.

Packages are resolved by a simulation of apt, and unpacked. The needed effects of their maintainer scripts are
written here, or made by systemd at its first boot, inside the guest.
"""

import os
import re
import subprocess
import uuid
from pathlib import Path

import debian

PACKAGES = (
    *(
        "base-files",
        "base-passwd",
        "bash",
        "coreutils",
        "dash",
        "diffutils",
        "libc-bin",
        "grep",
        "sed",
        "login",
        "passwd",
        "mount",
    ),
    *("util-linux", "procps", "fuse3", "systemd-sysv", "udev", "dbus", "libpam-systemd"),
)
_EMPTY = ("Dir::State::status=/dev/null", "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=")
_PAM = {
    "auth": "auth required pam_permit.so",
    "account": "account required pam_permit.so",
    "password": "password required pam_permit.so",
    "session": "session required pam_permit.so\nsession optional pam_systemd.so",
    "session-noninteractive": "session required pam_permit.so",
}


def write(root: Path) -> None:
    """Fill an empty folder. File owners are right only if run as root. Raises debian.Unavailable."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for archive in _archives(root.parent / "packages"):
        _unpack(archive, root)
    _configure(root)


def _archives(folder: Path) -> list[Path]:
    """The packages and all their dependencies, as if nothing were installed."""
    folder.mkdir()
    told = [word for option in _EMPTY for word in ("-o", option)]
    plan = debian.output(["apt-get", "-s", *told, "--no-install-recommends", "install", *PACKAGES])
    names = re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
    debian.output(["apt-get", "download", *names], cwd=str(folder))
    return sorted(folder.glob("*.deb"))


def _unpack(archive: Path, root: Path) -> None:
    """Unpack without `dpkg-deb -x`, which would replace the links from /bin to /usr/bin by folders."""
    content = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], capture_output=True, check=True).stdout
    tar = ["tar", "-x", "--numeric-owner", "--same-permissions", "--keep-directory-symlink", "-C", str(root)]
    subprocess.run(tar, input=content, check=True)


def _configure(root: Path) -> None:
    etc = root / "etc"
    for name, more in (
        (
            "passwd",
            "messagebus:x:100:100::/nonexistent:/usr/sbin/nologin\nreader:x:1000:1000::/home/reader:/bin/sh\n",
        ),
        ("group", "messagebus:x:100:\nreader:x:1000:\n"),
    ):
        (etc / name).write_text((root / "usr/share/base-passwd" / f"{name}.master").read_text() + more)
    for name in ("dev", "mnt", "proc", "root", "run", "srv/models", "sys", "tmp", "home/reader"):
        (root / name).mkdir(parents=True, exist_ok=True)
    os.chown(root / "home/reader", 1000, 1000)
    for name, text in _PAM.items():
        (etc / "pam.d" / f"common-{name}").write_text(f"{text}\n")
    (etc / "fstab").write_text("/dev/vda / ext4 rw 0 0\n/dev/vdb1 /srv/models ext4 ro 0 0\n")
    (etc / "hostname").write_text("guest\n")
    # With a machine id, this is not a first boot. At a first boot systemd asks questions on the console.
    (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
