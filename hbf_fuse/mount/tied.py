"""A mount that lives as long as a `with` block, and never longer than the process that asked for it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.mount import live
from hbf_fuse.tier import TierSpec

READY = "ready\n"
_END_SECONDS = 20


@contextmanager
def mounted(source: Path, mountpoint: Path, spec: TierSpec, engine: str = "kernel") -> Iterator[Path]:
    """Serve `source` at `mountpoint` from a process of its own; unmounted at the end, whatever happens.

    The server reads its stdin and ends when that closes: with this process, however it dies.
    Raises HbfError with the server's own words if the mount cannot begin.
    """
    command = [
        sys.executable,
        "-m",
        "hbf_fuse",
        "mount",
        "--foreground",
        "--tied",
        json.dumps(spec.to_dict()),
    ]
    command += ["--engine", engine, "--", str(source), str(mountpoint)]
    server = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_until_ready(server)
        yield mountpoint
    finally:
        _end(server)


def stats(mountpoint: Path) -> dict[str, Any]:
    """The mount's stats.json."""
    return live.read_hidden(mountpoint, "stats.json")


def _wait_until_ready(server: "subprocess.Popen[str]") -> None:
    if server.stdout is None or server.stdout.readline() != READY:
        _, said = server.communicate()
        lines = [line.removeprefix("hbf: ") for line in said.splitlines() if line.strip()]
        raise HbfError(lines[-1] if lines else "the mount's server ended without a word")


def _end(server: "subprocess.Popen[str]") -> None:
    if server.poll() is not None:
        return
    try:
        server.communicate("", timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        # The watcher unmounts what a killed server leaves behind.
        server.kill()
        server.communicate()
