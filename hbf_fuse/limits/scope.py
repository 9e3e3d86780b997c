"""Limits through systemd, if only systemd may make groups: systemd-run --scope."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hbf_fuse import reaper
from hbf_fuse.errors import HbfError
from hbf_fuse.limits import files, hierarchy, process
from hbf_fuse.limits.devices import Disk
from hbf_fuse.limits.files import Limits

_PATIENCE_SECONDS = 30.0
"""systemd may ask for a password first."""

_GATE = "import os, sys; os.read(int(sys.argv[1]), 1) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
"""The command begins to run only after its limits were found to be in force."""


def available() -> bool:
    """Whether systemd runs this machine. See sd_booted(3)."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None


@contextmanager
def started(
    line: Sequence[str], limits: Limits, disk: Disk | None
) -> Iterator[tuple["subprocess.Popen[bytes]", Limits]]:
    """A command in its own scope, and the limits in force. Processes that remain in the scope are killed.

    HbfError if systemd refuses or does not enforce the limits: a user's manager often has no io controller.
    """
    unit = f"hbf-{os.getpid()}-{secrets.token_hex(3)}.scope"
    closed, opened = os.pipe()
    gate = [sys.executable, "-I", "-S", "-c", _GATE, str(closed)]
    try:
        with process.started(
            [*_systemd_run(unit, limits, disk), *gate, *line], _nowhere, (closed,)
        ) as command:
            group = _scope_of(command, unit)
            with reaper.watching(groups=[str(group)]):
                try:
                    found = files.in_force(group, disk)
                    if loose := files.missing(limits, found):
                        raise HbfError(
                            f"systemd does not enforce {' '.join(loose)} for you (in force: {found})",
                            "run as root, or give users the controllers: Delegate=io memory for "
                            "user@.service",
                        )
                    os.write(opened, b"1")
                    yield command, found
                finally:
                    reaper.remove_group(str(group))
    finally:
        os.close(closed)
        os.close(opened)


def _systemd_run(unit: str, limits: Limits, disk: Disk | None) -> list[str]:
    """See systemd.resource-control(5)."""
    device = f"/dev/block/{disk.number}" if disk else ""
    properties = {
        "IOReadBandwidthMax": limits.io_mbps and f"{device} {round(limits.io_mbps * 1e6)}",
        "IOReadIOPSMax": limits.riops and f"{device} {limits.riops}",
        "MemoryMax": limits.memory_bytes,
        "MemoryHigh": limits.memory_high_bytes,
    }
    given = [part for key, value in properties.items() if value for part in ("-p", f"{key}={value}")]
    user = ["--user"] if os.geteuid() else []
    return ["systemd-run", *user, "--scope", "--quiet", "--collect", f"--unit={unit}", *given, "--"]


def _scope_of(command: "subprocess.Popen[bytes]", unit: str) -> Path:
    """The cgroup of the scope, once the command is in it."""
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while command.poll() is None and time.monotonic() < give_up:
        groups = hierarchy.v2_groups(command.pid)
        if groups and groups[1].name == unit:
            return groups[1]
        time.sleep(0.01)
    raise HbfError("systemd-run could not make a scope with these limits", "run as root")


def _nowhere() -> None:
    """Enters no group: systemd moves the command itself."""
