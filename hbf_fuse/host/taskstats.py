"""A process's waits as the kernel counted them: delay accounting, over netlink (TASKSTATS).

Sources: linux/taskstats.h, Documentation/accounting/delay-accounting.rst. pyroute2 carries the messages. Its
decoder lacks the waits that came with version 8 of the struct and later, so the struct is decoded here.
"""

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2.netlink import NLM_F_REQUEST, genlmsg, nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from hbf_fuse.errors import HbfError

SWITCH = Path("/proc/sys/kernel/task_delayacct")
"""Linux 5.14 and later count only while this is 1, and only for processes started in that time."""

_RESTORER = [sys.executable, "-I", "-S", str(Path(__file__).with_name("restorer.py")), str(SWITCH), "0"]

OLDEST = 9
"""Linux 4.20: the first version with the wait for pages that were evicted too early (thrashing)."""

_WAITS = ("cpu", "blkio", "swapin", "freepages", "thrashing", "compact", "wpcopy", "irq")
_WORD = 8
_COMMAND_GET = 1
_PROTOCOL_VERSION = 1

_GROUPS = (
    "version flags",
    "cpu_count cpu_delay_total blkio_count blkio_delay_total swapin_count swapin_delay_total",
    "cpu_run_real_total cpu_run_virtual_total",
    "ac_comm ac_comm ac_comm ac_comm ac_sched ac_uid ac_pid ac_btime",
    "ac_etime ac_utime ac_stime ac_minflt ac_majflt coremem virtmem hiwater_rss hiwater_vm",
    "read_char write_char read_syscalls write_syscalls read_bytes write_bytes cancelled_write_bytes",
    "nvcsw nivcsw ac_utimescaled ac_stimescaled cpu_scaled_run_real_total",
    "freepages_count freepages_delay_total",  # version 8
    "thrashing_count thrashing_delay_total",  # 9
    "ac_btime64 compact_count compact_delay_total",  # 10, 11
    "ac_tgid ac_tgetime ac_exe_dev ac_exe_inode",  # 12
    "wpcopy_count wpcopy_delay_total irq_count irq_delay_total",  # 13, 14
)
_FIELDS = [name for group in _GROUPS for name in group.split()]
"""The first field in each 8-byte word of the struct."""


def fields(version: int) -> list[str]:
    """The struct's words in order. Version 15 inserted the longest and the shortest wait in the middle;
    version 16 moved them to the end. Every other version begins like the one before.
    """
    extremes = {wait: [f"{wait}_delay_max", f"{wait}_delay_min"] for wait in _WAITS}
    if version == 15:
        return [
            word for name in _FIELDS for word in (name, *extremes.get(name.removesuffix("_delay_total"), []))
        ]
    return _FIELDS + ([word for pair in extremes.values() for word in pair] if version >= 16 else [])


@dataclass(frozen=True)
class Wait:
    """Waits of one kind, summed over all threads. longest_ns: the longest one took at least this."""

    count: int
    ns: int
    longest_ns: int


def parse(raw: bytes) -> dict[str, int]:
    """The words of a struct taskstats by name, as far as the kernel and this code know them.

    ValueError for anything else, and for a struct without the waits that are needed here.
    """
    if len(raw) < _WORD:
        raise ValueError(f"a struct of {len(raw)} bytes")
    (version,) = struct.unpack_from("=H", raw)
    values = struct.unpack_from(f"={len(raw) // _WORD}Q", raw)
    words = {**dict(zip(fields(version), values, strict=False)), "version": version}
    if version < OLDEST or "thrashing_delay_total" not in words:
        raise ValueError(f"version {version} of struct taskstats, {len(raw)} bytes; Linux 4.20 has {OLDEST}")
    return words


def of_process(pid: int) -> tuple[dict[str, Wait] | None, str]:
    """The waits of all threads that a process ever had, by kind; or None and why they are unknown.

    Call it after the process has ended and before wait(2): nothing is lost then. The kernel sums over threads
    that have ended. A process of one thread has no such sum: that thread's own figures are the total.
    """
    if not is_on():
        return None, f"kernel.task_delayacct was switched off meanwhile ({SWITCH})"
    try:
        group, leader = _query(pid)
    except _UNUSABLE as error:
        return None, str(_explain(error))
    words = {name: max(value, leader.get(name, 0)) for name, value in group.items()}
    if not words["cpu_run_virtual_total"]:
        return None, "this kernel does not count delays (CONFIG_TASK_DELAY_ACCT, or booted with nodelayacct)"
    return {kind: _wait(words, kind) for kind in _WAITS if f"{kind}_delay_total" in words}, ""


def unreachable() -> HbfError | None:
    """Why the kernel does not report the waits of a process; None if it does."""
    try:
        _query(os.getpid())
    except _UNUSABLE as error:
        return _explain(error)
    return None


@contextmanager
def accounting() -> Iterator[str]:
    """Have the kernel count the waits of processes that begin in this block. The switch is restored
    afterwards, even if this process is killed.

    Yields why the kernel will not count, or "".
    """
    if is_on():
        yield ""
        return
    if not os.access(SWITCH, os.W_OK):
        yield "kernel.task_delayacct is 0 and only root may change it: `sysctl kernel.task_delayacct=1`"
        return
    # Leaving the block closes the restorer's stdin and waits until the switch is restored.
    with subprocess.Popen(_RESTORER, stdin=subprocess.PIPE, start_new_session=True):
        yield _switch_on()


def _switch_on() -> str:
    try:
        SWITCH.write_text("1")
    except OSError as error:
        return f"kernel.task_delayacct cannot be changed here: {error.strerror}"
    return ""


def is_on() -> bool:
    """Whether the kernel counts waits. Kernels without the switch always do."""
    try:
        return SWITCH.read_text().strip() != "0"
    except OSError:
        return True


class _Request(genlmsg):
    nla_map = (("UNSPEC", "none"), ("PID", "uint32"), ("TGID", "uint32"))


class _Answer(genlmsg):
    nla_map = (
        ("UNSPEC", "none"),
        ("_PID", "uint32"),
        ("_TGID", "uint32"),
        ("_STATS", "cdata"),
        ("PID", "aggregate"),
        ("TGID", "aggregate"),
    )

    class aggregate(nla):
        nla_map = (("UNSPEC", "none"), ("PID", "uint32"), ("TGID", "uint32"), ("STATS", "cdata"))


_UNUSABLE = (OSError, NetlinkError, ValueError, LookupError, struct.error)


def _query(pid: int) -> tuple[dict[str, int], dict[str, int]]:
    """The words of a thread group, and of its leader alone. Raises one of _UNUSABLE."""
    with GenericNetlinkSocket() as channel:
        channel.bind("TASKSTATS", _Answer)
        return parse(_ask(channel, "TGID", pid)), parse(_ask(channel, "PID", pid))


def _ask(channel: Any, kind: str, pid: int) -> bytes:
    message = _Request()
    message["cmd"], message["version"] = _COMMAND_GET, _PROTOCOL_VERSION
    message["attrs"] = [(kind, pid)]
    (answer,) = channel.nlm_request(message, channel.prid, NLM_F_REQUEST)
    aggregate = answer.get_attr(kind)
    stats = aggregate and aggregate.get_attr("STATS")
    if not isinstance(stats, bytes | bytearray):
        raise ValueError("an answer without a struct taskstats")
    return bytes(stats)


def _wait(words: dict[str, int], kind: str) -> Wait:
    count, total = words[f"{kind}_count"], words[f"{kind}_delay_total"]
    mean = total // count if count else total
    return Wait(count, total, max(mean, words.get(f"{kind}_delay_max", 0)))


def _explain(error: Exception) -> HbfError:
    code = error.code if isinstance(error, NetlinkError) else getattr(error, "errno", None)
    if code in (errno.EPERM, errno.EACCES):
        return HbfError("TASKSTATS needs root (CAP_NET_ADMIN outside of containers)", "run as root")
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return HbfError(
            "this kernel, or this network namespace, has no TASKSTATS", "use a kernel with CONFIG_TASKSTATS"
        )
    if code == errno.ESRCH:
        return HbfError("the process no longer exists")
    return HbfError(f"TASKSTATS gave no usable answer ({error})")
