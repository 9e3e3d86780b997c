"""Judges whether a tier can be mounted here: the kernel, FUSE and what they need."""

import re

from hbf_fuse.doctor.facts import Facts
from hbf_fuse.doctor.line import FAIL, OK, WARN, Line
from hbf_fuse.engine.kernel import abi
from hbf_fuse.errors import HbfError

OLDEST_KERNEL = (5, 4)
OLDEST_MEMORY_KERNEL = (5, 14)
USUAL_PAGES = 256
"""FUSE requests of 1 MiB, in pages of 4 KiB."""
LOW_READAHEAD_KIB = 512

CONTAINER_OPTIONS = "docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined ..."


def wsl(proc_version: str) -> int:
    """The version of the Windows Subsystem for Linux, 1 or 2; 0 for none."""
    said = proc_version.lower()
    if "microsoft" not in said:
        return 0
    return 2 if "wsl2" in said or "microsoft-standard" in said else 1


def kernel(facts: Facts) -> Line:
    """Linux 5.4 is the first version with the FUSE protocol that the engine needs."""
    told = f"Linux {facts.kernel}, {facts.machine}{', container' if facts.container else ''}"
    found = re.match(r"(\d+)\.(\d+)", facts.kernel)
    if found and (int(found[1]), int(found[2])) < OLDEST_KERNEL:
        return Line("kernel", FAIL, f"{told} is too old", "use Linux 5.4 or newer")
    return Line("kernel", OK, told)


def windows(facts: Facts) -> Line | None:
    """WSL2 is a Linux with peculiarities; WSL1 has no FUSE."""
    kind = wsl(facts.proc_version)
    if kind == 1:
        return Line("WSL", FAIL, "WSL1 has no FUSE", "wsl --set-version DISTRIBUTION 2")
    if kind == 2 and not facts.systemd:
        return Line(
            "WSL",
            WARN,
            "WSL2 without systemd, its default: no units, no systemd-run",
            "put systemd=true under [boot] in /etc/wsl.conf, then `wsl --shutdown`",
        )
    return Line("WSL", OK, "WSL2 with systemd") if kind else None


def device(facts: Facts) -> Line:
    """/dev/fuse, and how to get it in a container."""
    if not facts.device_failure:
        return Line("/dev/fuse", OK, "can be opened")
    if facts.device_failure == "missing":
        remedy = CONTAINER_OPTIONS if facts.container else "modprobe fuse"
        return Line("/dev/fuse", FAIL, "there is none", remedy)
    if not isinstance(facts.mount, HbfError):
        return Line("/dev/fuse", OK, f"{facts.device_failure}; fusermount3 opens it for you")
    # Device rules, which also apply to root, give another error than the file's permissions.
    ruled = facts.root or facts.device_failure == "operation not permitted"
    remedy = CONTAINER_OPTIONS if ruled else "as root: chmod 666 /dev/fuse"
    return Line("/dev/fuse", FAIL, f"cannot be opened: {facts.device_failure}", remedy)


def mount(facts: Facts) -> Line:
    """A real mount, and the protocol that the engine and the kernel agreed upon."""
    if isinstance(facts.mount, HbfError):
        return Line("mount", FAIL, facts.mount.what, facts.mount.remedy or "fix the lines above")
    spoken, kernels = facts.mount.get("fuse_protocol"), facts.mount.get("fuse_protocol_kernel")
    oldest = f"{abi.MAJOR}.{abi.OLDEST_MINOR}"
    return Line("mount", OK, f"works, FUSE {spoken} (the kernel speaks {kernels}, {oldest} is needed)")


def read_path(facts: Facts) -> Line:
    """Whether reads are served by compiled code."""
    if not facts.uncompiled:
        return Line("read path", OK, "compiled")
    return Line("read path", WARN, f"uncompiled, slower: {facts.uncompiled.what}", facts.uncompiled.remedy)


def fusermount(facts: Facts) -> Line:
    """The helper that mounts for users who are not root."""
    if facts.fusermount:
        return Line("fusermount3", OK, "installed")
    if facts.root:
        return Line("fusermount3", WARN, "missing: only root can mount", "apt install fuse3")
    return Line("fusermount3", FAIL, "missing: you cannot mount without root", "sudo apt install fuse3")


def libfuse2(facts: Facts) -> Line:
    """Only the fusepy engine needs it."""
    if facts.libfuse2:
        return Line("libfuse2", OK, "installed")
    return Line("libfuse2", WARN, "missing: no --engine fusepy", "apt install libfuse2 (or libfuse2t64)")


def permissions(facts: Facts) -> Line:
    """What this user may do."""
    if facts.root:
        return Line("permissions", OK, "root")
    if facts.user_allow_other:
        return Line("permissions", OK, "no root; --allow-other is permitted")
    return Line(
        "permissions",
        WARN,
        "no root, and --allow-other is not permitted",
        "echo user_allow_other | sudo tee -a /etc/fuse.conf",
    )


def request_size(facts: Facts) -> Line:
    """Larger requests cost less. The sysctl exists since Linux 6.13."""
    limit = facts.max_pages_limit
    if limit is None:
        return Line("request size", OK, "up to 1 MiB (this kernel's fixed limit)")
    if limit < USUAL_PAGES:
        return Line(
            "request size",
            WARN,
            f"at most {limit * 4} KiB (fs.fuse.max_pages_limit = {limit})",
            f"sysctl fs.fuse.max_pages_limit={USUAL_PAGES}",
        )
    return Line("request size", OK, f"up to 1 MiB (fs.fuse.max_pages_limit = {limit})")


def readahead(facts: Facts) -> Line | None:
    """The kernel's readahead on the test mount."""
    if isinstance(facts.mount, HbfError):
        return None
    reached = facts.mount.get("readahead_kib", 0)
    if reached < LOW_READAHEAD_KIB:
        return Line("readahead", WARN, f"{reached} KiB: costs bandwidth at high latency", "mount as root")
    return Line("readahead", OK, f"{reached} KiB")


def memory_engine(facts: Facts) -> Line | None:
    """userfaultfd(2) with minor faults of shared memory: since Linux 5.14. User mode is enough, which
    vm.unprivileged_userfaultfd does not forbid; seccomp may.
    """
    if facts.fault_ns is None:
        return None
    if not isinstance(facts.fault_ns, HbfError):
        mode = {0: "user mode", 1: "unprivileged, too"}.get(facts.unprivileged_userfaultfd or 0, "")
        told = f"works, a fault takes {facts.fault_ns / 1000:.1f} us ({mode})"
        return Line("memory engine", OK, told if facts.fault_ns else "works")
    why, remedy = facts.fault_ns.what, facts.fault_ns.remedy
    found = re.match(r"(\d+)\.(\d+)", facts.kernel)
    if found and (int(found[1]), int(found[2])) < OLDEST_MEMORY_KERNEL:
        remedy = "use Linux 5.14 or newer"
    elif "not permitted" in why:
        remedy = (
            "docker run --security-opt seccomp=unconfined ..." if facts.container else "allow userfaultfd"
        )
    return Line("memory engine", WARN, f"no --engine memory: {why}", remedy)


JUDGES = (
    kernel,
    windows,
    device,
    mount,
    read_path,
    fusermount,
    libfuse2,
    permissions,
    request_size,
    readahead,
    memory_engine,
)
