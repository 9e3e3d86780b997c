"""Debian packages, fetched by name through the machine's own apt and unpacked, never installed."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.models.places import cache_dir


class Unavailable(HbfError):
    """A requirement of a virtual machine that this machine cannot get: a reason to skip, not a failure."""


def unpacked(package: str) -> Path:
    """The folder with a package's files, kept under the cache directory per version.

    Raises Unavailable if apt does not know the package, or cannot fetch it.
    """
    folder = cache_dir() / "vm" / f"{package}_{field(package, 'Version').replace(':', '.')}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        output(["apt-get", "download", package], cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        files = Path(scratch) / "files"
        output(["dpkg-deb", "-x", str(archive), str(files)])
        try:
            files.rename(folder)
        except OSError:
            # Another run has unpacked it meanwhile.
            if not folder.exists():
                raise
    return folder


def dependency(package: str, pattern: str) -> str | None:
    """The first package matching `pattern` that a package depends on."""
    names = re.findall(r"[a-z0-9][a-z0-9+.-]+", field(package, "Depends", missing=""))
    return next((name for name in names if re.fullmatch(pattern, name)), None)


def field(package: str, name: str, missing: str | None = None) -> str:
    """A field of apt's record of the newest version; else `missing`, or Unavailable if that is not given."""
    record = output(["apt-cache", "show", "--no-all-versions", package])
    found = re.search(rf"^{name}: (.*)$", record, re.MULTILINE)
    if found is None and missing is None:
        raise Unavailable(f"apt knows no package {package}; `apt-get update` may help")
    return found[1] if found else missing or ""


def output(command: list[str], cwd: str | None = None) -> str:
    """The output of a command; raises Unavailable if it is missing or fails."""
    env = {**os.environ, "LC_ALL": "C"}
    try:
        ended = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Unavailable(f"there is no {command[0]} here; try tools/setup --vm") from error
    if ended.returncode:
        last = (ended.stderr.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"`{' '.join(command)}` failed: {last}")
    return ended.stdout
