"""A program of llama.cpp on this machine: where it is, and which options it has."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.models.places import cache_dir
from hbf_fuse.workload import child

_FLAG = re.compile(r"(?<![\w-])-{1,2}[a-zA-Z][\w-]*")
_SETTINGS = ("OMP_", "GOMP_", "KMP_", "GGML_")


@dataclass(frozen=True)
class Program:
    """name: of the binary. variable: of the environment, which may name one. build: what makes one."""

    name: str
    variable: str
    build: str

    def find(self) -> Path:
        """The variable's, the one on PATH, or the newest build in the cache. HbfError says how to get one."""
        if named := os.environ.get(self.variable):
            if not os.access(named, os.X_OK):
                raise HbfError(f"${self.variable} names {named}, which is not an executable file")
            return Path(named)
        if found := self._on_path():
            return found
        built = cache_dir().glob(f"llama-bench-*/{self.name}")
        if newest := max(built, key=lambda path: path.stat().st_mtime, default=None):
            return newest
        raise HbfError(
            f"no {self.name} found",
            f"build one with {self.build}, put one on PATH, or name one in ${self.variable}",
        )

    def _on_path(self) -> Path | None:
        """The first on PATH that is not a link into the cache, as tools/setup makes one: such a link would
        hide newer builds in the cache.
        """
        for folder in os.get_exec_path():
            if found := shutil.which(self.name, path=folder):
                path = Path(found)
                if not (path.is_symlink() and path.resolve().is_relative_to(cache_dir().resolve())):
                    return path
        return None

    def flags(self, binary: Path) -> frozenset[str]:
        """The options in its --help; they differ between versions."""
        found = frozenset(_FLAG.findall(help_of(binary)))
        if "--model" not in found and "-m" not in found:
            raise HbfError(f"{binary} is not {self.name}: its --help does not know -m")
        return found

    def version(self, binary: Path) -> str:
        """The first line of --version, or `unknown` for builds without it."""
        if "--version" not in self.flags(binary):
            return "unknown"
        return _said(binary, "--version").strip().partition("\n")[0] or "unknown"


BENCH = Program("llama-bench", "HBF_LLAMA_BENCH", "tools/llama-bench-build (about 7 minutes on 2 cores)")
SERVER = Program(
    "llama-server", "HBF_LLAMA_SERVER", "tools/llama-bench-build --server (about 15 minutes on 2 cores)"
)


def help_of(binary: Path) -> str:
    """What its --help prints. HbfError if it cannot be run."""
    try:
        return _said(binary, "--help")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HbfError(f"cannot run {binary}: {error}") from error


@cache
def _said(binary: Path, option: str) -> str:
    said = child.run_group([str(binary), option], timeout_seconds=60, unprivileged=True)
    return said.stdout + said.stderr


def settings() -> list[str]:
    """Environment variables that change how llama.cpp's threads run, as NAME=VALUE."""
    return sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_SETTINGS))
