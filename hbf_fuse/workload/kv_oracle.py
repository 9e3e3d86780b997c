"""Asks llama.cpp itself for the caches of a model: tools/kv_oracle builds the program that does."""

import os
import re
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.models.places import cache_dir
from hbf_fuse.workload import child

NAME = "kv-oracle"
_LINE = re.compile(r"^(\w+): .*?\bsize = +([\d.]+) MiB(?: \( *(\d+) cells)?")
_STATE = re.compile(r"state = (\d+) x")
_SECONDS = 120


@dataclass(frozen=True, slots=True, order=True)
class Allocated:
    """A cache as llama.cpp logs it. mib: with its two decimals."""

    cache: str
    mib: str
    cells: int


@dataclass(frozen=True, slots=True)
class Question:
    """As llama.cpp's -c, -np, -ctk, -ctv, -kvu and -ub."""

    context: int
    parallel: int = 1
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    unified: bool = False
    ubatch: int = 512


def find() -> Path:
    """$HBF_KV_ORACLE, or the newest one beside a llama-bench in the cache. HbfError says how to get one."""
    if named := os.environ.get("HBF_KV_ORACLE"):
        if not os.access(named, os.X_OK):
            raise HbfError(f"$HBF_KV_ORACLE names {named}, which is not an executable file")
        return Path(named)
    built = sorted(cache_dir().glob(f"llama-bench-*/{NAME}"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise HbfError(
            "no llama.cpp to ask for its caches",
            "run tools/kv_oracle --build, which builds one (4 minutes on 2 cores)",
        )
    return built[-1]


def ask(binary: Path, model: Path, question: Question) -> list[Allocated]:
    """What llama.cpp allocates, without caches that are empty. HbfError if it refuses the model."""
    line = [str(binary), str(model), str(question.context), str(question.parallel)]
    line += [question.cache_type_k, question.cache_type_v, str(int(question.unified)), str(question.ubatch)]
    try:
        said = child.run_group(line, timeout_seconds=_SECONDS, unprivileged=True)
    except subprocess.TimeoutExpired as error:
        raise HbfError(f"llama.cpp gave no answer on {model} within {_SECONDS} s") from error
    except OSError as error:
        raise HbfError(f"cannot run {binary}: {error.strerror}") from error
    if "made" not in said.stdout.splitlines():
        told = [text for text in said.stderr.splitlines() if text and "failed to load model" not in text]
        raise HbfError(
            f"llama.cpp makes no cache for {model}: {told[-1][:300] if told else 'it does not say why'}"
        )
    return parse(said.stdout)


def parse(output: str) -> list[Allocated]:
    """The caches in llama.cpp's log, sorted."""
    found = []
    for line in output.splitlines():
        match = _LINE.match(line)
        if match and float(match[2]):
            state = _STATE.search(line)
            found.append(Allocated(match[1], match[2], int(match[3] or (state[1] if state else 0))))
    return sorted(found)


def mib(nbytes: int) -> str:
    """As llama.cpp prints it: a 32-bit float with two decimals."""
    return f"{struct.unpack('f', struct.pack('f', nbytes))[0] / 2**20:.2f}"


def agree(parts: Sequence[tuple[int, int]], allocated: Sequence[Allocated]) -> bool:
    """Whether parts, as bytes and cells, are what llama.cpp allocates."""
    ours = sorted((mib(nbytes), cells) for nbytes, cells in parts)
    return [each for each in ours if float(each[0])] == sorted(
        (cache.mib, cache.cells) for cache in allocated
    )
