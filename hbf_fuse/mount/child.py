"""A mount that lives as long as a `with` block, and never longer than the process that asked for it.

Run as a module, it is the server of such a mount: `python -m hbf_fuse.mount.child CONFIG`, CONFIG as JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hbf_fuse import signals
from hbf_fuse.errors import HbfError, in_one_line
from hbf_fuse.fs.placement import Layout
from hbf_fuse.mount import client, mountpoint, server
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

READY = "ready\n"
_END_SECONDS = 20


@contextmanager
def mounted(config: MountConfig) -> Iterator[Path]:
    """Serve from a process of its own; yields the mountpoint and unmounts at the end, whatever happens.

    The server reads its stdin and ends when that closes: with this process, however it dies.
    Raises HbfError with the server's own words if the mount cannot begin.
    """
    config = dataclasses.replace(config, mountpoint=mountpoint.absolute(config.mountpoint))
    # No pipe for its remarks: a full one that nobody reads would stop the server, and with it its readers.
    with tempfile.TemporaryFile("w+", errors="replace") as remarks:
        process = None
        try:
            with signals.deferred():
                process = _server(config, remarks)
            _wait_until_ready(process, remarks)
            yield config.mountpoint
        finally:
            if process is not None:
                _end(process)


def stats(mountpoint: Path) -> dict[str, Any]:
    """The mount's stats.json."""
    return client.read_hidden(mountpoint, "stats.json")


def _server(config: MountConfig, remarks: IO[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "hbf_fuse.mount.child", _packed(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=remarks,
        text=True,
        start_new_session=True,
        # Whoever supervises this process waits for its word, not for that of a mount which it makes.
        env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
    )


def _wait_until_ready(process: "subprocess.Popen[str]", remarks: IO[str]) -> None:
    if process.stdout is None or process.stdout.readline() != READY:
        process.communicate()
        remarks.seek(0)
        lines = [line for line in remarks if line.strip()]
        raise HbfError(lines[-1].strip() if lines else "the mount's server ended without a word")


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is not None:
        return
    try:
        process.communicate("", timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        # The watcher unmounts what a killed server leaves behind.
        process.kill()
        process.communicate()


def _packed(config: MountConfig) -> str:
    return json.dumps(dataclasses.asdict(config), default=str)


def _unpacked(text: str) -> MountConfig:
    fields = json.loads(text)
    paths = {key: Path(fields[key]) for key in ("source", "mountpoint", "trace") if fields[key]}
    layout = fields["layout"]
    tiers = {name: TierSpec.from_dict(spec) for name, spec in layout["tiers"].items()}
    layout = Layout(**{**layout, "place": tuple(layout["place"]), "tiers": tiers})
    return MountConfig(**{**fields, **paths, "spec": TierSpec.from_dict(fields["spec"]), "layout": layout})


def _ready(_remark_on_source: str) -> None:
    print(READY, end="", flush=True)
    # Remarks are for whoever waits for the mount; later ones would only pile up.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Serve the mount of argv[1] until stdin closes."""
    config = _unpacked(sys.argv[1])
    try:
        if repaired := mountpoint.prepare(config.mountpoint):
            _remark(repaired)
        server.serve(config, _ready, _remark, until_stdin_closes=True)
    except (HbfError, ValueError) as error:
        _remark(" ".join(str(error).split()))
        sys.exit(1)
    except OSError as error:
        _remark(in_one_line(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
