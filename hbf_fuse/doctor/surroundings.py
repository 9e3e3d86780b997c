"""Collects what containers, WSL2, sudo and AppArmor take away from a user."""

import os
import pwd
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.host import linux

SECURE_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/snap/bin")
"""Where sudo looks for commands, as Debian and Ubuntu set secure_path. /etc/sudoers is closed to users."""

_USER_NAMESPACES = {
    "user.max_user_namespaces": "0",
    "kernel.unprivileged_userns_clone": "0",  # Debian's, until 10
    "kernel.apparmor_restrict_unprivileged_userns": "1",  # Ubuntu's, since 23.10
}
"""Sysctls, with the value at which `unshare -Urm` cannot mount."""


@dataclass(frozen=True)
class Surroundings:
    """nameless_uid: this user's id if /etc/passwd has no line for it. may_mount: whether this process has
    CAP_SYS_ADMIN. no_new_privileges: whether setuid programs have no effect. user_namespaces: the sysctl that
    forbids them, "" if none does. confined: whether AppArmor has a profile for fusermount3. shares: whether
    any mount propagates to others. unknown_to_sudo: the command of this program if sudo would not find it by
    its name. model: $HBF_MODEL.
    """

    nameless_uid: int | None = None
    may_mount: bool = True
    no_new_privileges: bool = False
    user_namespaces: str = ""
    confined: bool = False
    shares: bool = True
    unknown_to_sudo: Path | None = None
    model: str = ""


def collect() -> Surroundings:
    """Of this process."""
    status = _content(Path("/proc/self/status"))
    return Surroundings(
        nameless_uid=None if _has_name(os.getuid()) else os.getuid(),
        may_mount=bool(_field(status, "CapEff", 16) >> linux.CAP_SYS_ADMIN & 1),
        no_new_privileges=_field(status, "NoNewPrivs", 10) == 1,
        user_namespaces=next(
            (name for name, value in _USER_NAMESPACES.items() if _sysctl(name) == value), ""
        ),
        confined=mounting.CONFINEMENT.exists()
        and _content(Path("/sys/module/apparmor/parameters/enabled")).strip() == "Y",
        shares=" shared:" in _content(Path("/proc/self/mountinfo")),
        unknown_to_sudo=_unknown_to_sudo(),
        model=os.environ.get("HBF_MODEL", ""),
    )


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _unknown_to_sudo() -> Path | None:
    command = Path(sys.executable).with_name("hbf-mount")
    if not shutil.which("sudo") or not command.exists() or str(command.parent) in SECURE_PATH:
        return None
    return command


def _field(status: str, name: str, base: int) -> int:
    found = re.search(rf"^{name}:\s*(\w+)$", status, re.MULTILINE)
    return int(found[1], base) if found else 0


def _sysctl(name: str) -> str:
    return _content(Path("/proc/sys", *name.split("."))).strip()


def _content(file: Path) -> str:
    """A file's text, or "" if it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
