"""A mount for a `with` block. It never lives longer than the process that asked for it.

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
from typing import IO, NoReturn

from hbf_fuse import signals
from hbf_fuse.errors import HbfError, of_system
from hbf_fuse.fs.placement import Layout
from hbf_fuse.mount import mountpoint, server
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

READY = "ready\n"
_END_SECONDS = 20
_TOLD = 500


@contextmanager
def mounted(config: MountConfig) -> Iterator[Path]:
    """Serve from a new process. Yields the mountpoint; unmounts at the end, whatever happens.

    The server reads its stdin and ends when that closes: with this process, however it dies. Raises HbfError
    with the server's message if the mount cannot begin.
    """
    config = dataclasses.replace(config, mountpoint=mountpoint.absolute(config.mountpoint))
    # Remarks go to a file: a full pipe that nobody reads would stop the server, and so its readers.
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


def _server(config: MountConfig, remarks: IO[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "hbf_fuse.mount.child", _packed(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=remarks,
        text=True,
        start_new_session=True,
        # This process reports to the supervisor; the server of its mount must not.
        env={name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"},
    )


def _wait_until_ready(process: "subprocess.Popen[str]", remarks: IO[str]) -> None:
    said = process.stdout.readline() if process.stdout else ""
    if said == READY:
        return
    process.communicate()
    if said:
        raise HbfError(*json.loads(said))
    remarks.seek(0)
    last = remarks.read()[-_TOLD:].strip().rpartition("\n")[2]
    raise HbfError(f"the mount's server ended before it answered: {last or 'it said nothing'}")


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is not None:
        return
    try:
        process.communicate("", timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        # The watcher unmounts the mount of a killed server.
        process.kill()
        process.communicate()


def _packed(config: MountConfig) -> str:
    return json.dumps(dataclasses.asdict(config), default=str)


def _unpacked(text: str) -> MountConfig:
    fields = json.loads(text)
    paths = {key: Path(fields[key]) for key in ("source", "mountpoint", "trace", "kv_dir") if fields[key]}
    layout = fields["layout"]
    tiers = {name: TierSpec.from_dict(spec) for name, spec in layout["tiers"].items()}
    layout = Layout(**{**layout, "place": tuple(layout["place"]), "tiers": tiers})
    return MountConfig(**{**fields, **paths, "spec": TierSpec.from_dict(fields["spec"]), "layout": layout})


def _ready(_remark_on_source: str) -> None:
    print(READY, end="", flush=True)
    # Only the process that waits for the mount reads remarks; later ones would pile up.
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _refuse(error: HbfError) -> NoReturn:
    print(json.dumps(error.args), flush=True)
    sys.exit(1)


def main() -> None:
    """Serve the mount of argv[1] until stdin closes."""
    config = _unpacked(sys.argv[1])
    try:
        if repaired := mountpoint.prepare(config.mountpoint):
            _remark(repaired)
        server.serve(config, _ready, _remark, until_stdin_closes=True)
    except HbfError as error:
        _refuse(error)
    except ValueError as error:
        _refuse(HbfError(str(error)))
    except OSError as error:
        _refuse(of_system(error))


if __name__ == "__main__":
    main()
