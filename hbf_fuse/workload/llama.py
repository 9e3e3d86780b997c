"""llama-bench: finding it, asking which flags it has, running it, believing only sound output."""

import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.models.choice import cache_dir
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.workload import child, stalls

_BEGINS = re.compile(r"\d: (prompt|generation) run 1/")
_FLAG = re.compile(r"(?<![\w-])-{1,2}[a-zA-Z][\w-]*")
_SETTINGS = ("OMP_", "GOMP_", "KMP_", "GGML_")


@dataclass(frozen=True)
class BenchOptions:
    """llama-bench's own axes, by its own names. threads 0 and repack None leave the choice to llama-bench."""

    n_prompt: int = 256
    n_gen: int = 256
    threads: int = 0
    repack: int | None = None


@dataclass(frozen=True)
class BenchRun:
    """What one process did. pp and tg are tokens/s, None if not asked for; stalls, starved: see
    workload/stalls.py.
    """

    command: list[str]
    pp: float | None
    tg: float | None
    wall_seconds: float
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    stalls: dict[str, Any]
    records: list[dict[str, Any]]
    phases: list[Phase]
    starved: list[tuple[int, int | None]]

    def starved_between(self, start_ns: int, end_ns: int) -> int | None:
        """How long its threads wanted a CPU meanwhile, in ns; None if that is not known."""
        inside = [waited for moment, waited in self.starved if start_ns <= moment <= end_ns]
        first, last = (inside[0], inside[-1]) if inside else (0, 0)
        return None if first is None or last is None else last - first


def find() -> Path:
    """$HBF_LLAMA_BENCH, PATH, or the newest one built into the cache. HbfError says how to get one."""
    if named := os.environ.get("HBF_LLAMA_BENCH"):
        if not os.access(named, os.X_OK):
            raise HbfError(f"$HBF_LLAMA_BENCH names {named}, which is not an executable file")
        return Path(named)
    if found := _on_path():
        return found
    built = sorted(cache_dir().glob("llama-bench-*/llama-bench"), key=lambda path: path.stat().st_mtime)
    if not built:
        raise HbfError(
            "no llama-bench found; build one with tools/llama-bench-build (about 7 minutes on 2 cores), "
            "put one on PATH, or name one in $HBF_LLAMA_BENCH"
        )
    return built[-1]


def _on_path() -> Path | None:
    """The first on PATH that is no link into the cache, as tools/setup makes one: what is built there later
    would stay unseen behind it.
    """
    for folder in os.get_exec_path():
        if found := shutil.which("llama-bench", path=folder):
            path = Path(found)
            if not (path.is_symlink() and path.resolve().is_relative_to(cache_dir().resolve())):
                return path
    return None


@cache
def flags(binary: Path) -> frozenset[str]:
    """The options in its --help: they differ from version to version."""
    try:
        said = _asked(binary, "--help")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HbfError(f"cannot run {binary}: {error}") from error
    found = frozenset(_FLAG.findall(said.stdout + said.stderr))
    if "--model" not in found and "-m" not in found:
        raise HbfError(f"{binary} is no llama-bench: its --help does not know -m")
    return found


@cache
def version(binary: Path) -> str:
    """The first line of --version, or `unknown` for builds that have none."""
    if "--version" not in flags(binary):
        return "unknown"
    said = _asked(binary, "--version")
    return (said.stdout + said.stderr).strip().partition("\n")[0] or "unknown"


def _asked(binary: Path, option: str) -> child.Ended:
    return child.run_group([str(binary), option], timeout_seconds=60, unprivileged=True)


def command(binary: Path, model: Path, options: BenchOptions, known: Collection[str]) -> list[str]:
    """The command line of one cold run through mmap. known: the flags that this version has."""
    line = [str(binary), "-m", str(model), "-p", str(options.n_prompt), "-n", str(options.n_gen)]
    line += ["-r", "1", "-o", "jsonl"]
    if options.threads:
        line += ["-t", str(options.threads)]
    if options.repack is not None and "--repack" in known:
        line += ["--repack", str(options.repack)]
    if "--no-warmup" in known:
        line += ["--no-warmup"]
    if "--progress" in known:
        line += ["--progress"]
    if "--load-mode" in known:
        line += ["--load-mode", "mmap"]
    elif "--mmap" in known:
        line += ["--mmap", "1"]
    return line


def settings() -> list[str]:
    """Variables of the environment that change how llama.cpp's threads run, as NAME=VALUE."""
    return sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(_SETTINGS))


def run(
    binary: Path,
    model: Path,
    options: BenchOptions,
    timeout_seconds: float,
    pass_fds: Sequence[int] = (),
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    shown: str = "",
) -> BenchRun:
    """Run once. HbfError if it fails, prints nonsense, or takes longer than the timeout.

    shown: what the result calls the model instead of by its path: results get published.
    pass_fds: descriptors that `model` needs, if it is a path below /proc/self/fd. enter, require: see
    child.run_group.
    """
    line = command(binary, model, options, flags(binary))
    try:
        with stalls.counted() as watch:
            said = child.run_group(line, timeout_seconds, pass_fds, watch, enter, require, unprivileged=True)
            counted = watch.metrics(said.wall_seconds)
    except subprocess.TimeoutExpired as error:
        raise HbfError(f"llama-bench did not end within {timeout_seconds:g} s (--timeout)") from error
    except OSError as error:
        raise HbfError(f"cannot run {binary}: {error.strerror}") from error
    wall = said.wall_seconds
    if said.returncode:
        last = (said.stderr.strip() or said.stdout.strip() or "no message").splitlines()[-1]
        raise HbfError(f"llama-bench failed with exit code {said.returncode}: {last[:300]}")
    records = [_named(record, str(model), shown or str(model)) for record in _parse(said.stdout)]
    prefill, decode = _sampled(records, generating=False), _sampled(records, generating=True)
    return BenchRun(
        command=command(Path(binary.name), Path(shown or model), options, flags(binary)),
        pp=_rate(records, options.n_prompt, 0),
        tg=_rate(records, 0, options.n_gen),
        wall_seconds=wall,
        load_seconds=wall - prefill - decode,
        prefill_seconds=prefill,
        decode_seconds=decode,
        stalls=counted,
        records=records,
        phases=_phases(said.lines, records),
        starved=watch.starved,
    )


def _named(record: dict[str, Any], path: str, shown: str) -> dict[str, Any]:
    return {
        key: value.replace(path, shown) if isinstance(value, str) else value for key, value in record.items()
    }


def _parse(output: str) -> list[dict[str, Any]]:
    try:
        records = [documents.parse_json(line) for line in output.splitlines() if line.startswith("{")]
        if not records:
            raise ValueError("no JSON lines")
        for record in records:
            figures = [record["n_prompt"], record["n_gen"], record["avg_ts"], *record["samples_ns"]]
            if not all(isinstance(figure, int | float) and math.isfinite(figure) for figure in figures):
                raise ValueError("a figure is not a number")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise HbfError(
            f"llama-bench printed something that is no result ({error}): {output[:80]!r}"
        ) from error
    return records


def _sampled(records: list[dict[str, Any]], generating: bool) -> float:
    """Seconds of all samples of prefill, or of decode."""
    return sum(sum(record["samples_ns"]) for record in records if bool(record["n_gen"]) == generating) / 1e9


def _phases(lines: list[tuple[int, str]], records: list[dict[str, Any]]) -> list[Phase]:
    """When each test ran: --progress says that it begins, its sample how long it took. Empty without both."""
    begun = [stamp for stamp, line in lines if _BEGINS.search(line)]
    if len(begun) != len(records):
        return []
    return [
        Phase(
            name="decode" if record["n_gen"] else "prefill",
            tokens=record["n_gen"] or record["n_prompt"],
            start_ns=stamp,
            end_ns=stamp + sum(record["samples_ns"]),
        )
        for stamp, record in zip(begun, records, strict=True)
    ]


def _rate(records: list[dict[str, Any]], n_prompt: int, n_gen: int) -> float | None:
    if not n_prompt and not n_gen:
        return None
    for record in records:
        if record["n_prompt"] == n_prompt and record["n_gen"] == n_gen:
            return float(record["avg_ts"])
    raise HbfError(f"llama-bench gave no result for -p {n_prompt} -n {n_gen}")
