"""llama-bench: run it, and accept only sound output."""

import contextlib
import math
import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.workload import child, failure, stalls
from hbf_fuse.workload.program import BENCH, help_of

_BEGINS = re.compile(r"\d: (prompt|generation) run 1/")
_LOAD_MODES = re.compile(r"--load-mode <([\w|+]+)>")
MMAP = "mmap"
_BEFORE = "give it before the --"
_OURS = {
    **dict.fromkeys(("-m", "--model", "-p", "--n-prompt", "-n", "--n-gen", "-t", "--threads"), _BEFORE),
    **dict.fromkeys(("-lm", "--load-mode"), _BEFORE),
    **dict.fromkeys(("-r", "--repetitions"), "each repeat is a mount of its own: --repeats of hbf sweep"),
    **dict.fromkeys(("-o", "--output", "-oe", "--output-err"), "hbf reads llama-bench's output"),
    "-pg": "prefill and decode are measured apart: -p and -n",
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), "the model is the one that is served"),
}
"""Options of llama-bench that cannot stand after --, and what to do instead."""

LOAD_MODES = {
    "none": "weights are copied into llama-bench's own memory while it loads: the tier is read once",
    "dio": "weights are read past the page cache into llama-bench's own memory: the tier is read once",
    "mlock": "weights are copied into locked memory while llama-bench loads: the tier is read once",
    "mmap+mlock": "weights are mapped and locked: what has come stays in memory",
}
"""What a load mode other than mmap does to the tier."""


@dataclass(frozen=True)
class BenchOptions:
    """llama-bench's options, by its own names. With threads 0 and repack None, llama-bench chooses.

    load_mode: its -lm. extra: further options, as they stand on its command line. Of llama-server, n_prompt
    and n_gen are the tokens of a request and of its answer.
    """

    n_prompt: int = 256
    n_gen: int = 256
    threads: int = 0
    repack: int | None = None
    load_mode: str = MMAP
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchRun:
    """The result of one process. pp and tg are tokens/s, None if not requested; stalls, starved: see
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

    @property
    def lifetime_seconds(self) -> float:
        """How long the process ran."""
        return self.wall_seconds

    def starved_between(self, start_ns: int, end_ns: int) -> int | None:
        """Run-queue delay of its threads in this time, in ns; None if unknown."""
        inside = [waited for moment, waited in self.starved if start_ns <= moment <= end_ns]
        first, last = (inside[0], inside[-1]) if inside else (0, 0)
        return None if first is None or last is None else last - first


def command(binary: Path, model: Path, options: BenchOptions, known: Collection[str]) -> list[str]:
    """The command line of one cold run through mmap. known: the flags of this build."""
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
        line += ["--load-mode", options.load_mode]
    elif "--mmap" in known:
        line += ["--mmap", str(int(options.load_mode == MMAP))]
    return [*line, *options.extra]


def check(options: BenchOptions, binary: Path) -> None:
    """HbfError for a load mode that this llama-bench does not have, and for options that hbf gives itself."""
    there = load_modes(binary)
    if options.load_mode not in there:
        raise HbfError(
            f"llama-bench has no load mode {options.load_mode!r} (-lm)", f"there are: {', '.join(there)}"
        )
    for word in options.extra:
        name = word.partition("=")[0]
        if name in _OURS:
            raise HbfError(f"{name} cannot stand after --", _OURS[name])


def load_modes(binary: Path) -> tuple[str, ...]:
    """Its load modes by its own words, from its --help; older builds know mmap and none."""
    found = _LOAD_MODES.search(help_of(binary))
    return tuple(found[1].split("|")) if found else (MMAP, "none")


def run(
    binary: Path,
    model: Path,
    options: BenchOptions,
    timeout_seconds: float,
    pass_fds: Sequence[int] = (),
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    environment: Mapping[str, str] = child.NO_VARIABLES,
    shown: str = "",
) -> BenchRun:
    """Run once. HbfError if it fails, prints an unusable result, or exceeds the timeout.

    shown: name of the model in the result, instead of its path: results get published.
    pass_fds: descriptors that `model` needs, if it is a path below /proc/self/fd.
    enter, require, environment: see child.running.
    """
    line = command(binary, model, options, BENCH.flags(binary))
    try:
        with stalls.counted() as watch:
            said = child.run_group(line, timeout_seconds, pass_fds, watch, enter, require, True, environment)
            counted = watch.metrics(said.wall_seconds)
    except subprocess.TimeoutExpired as error:
        raise HbfError(f"llama-bench did not end within {timeout_seconds:g} s (--timeout)") from error
    except OSError as error:
        raise HbfError(f"cannot run {binary}: {error.strerror}") from error
    wall = said.wall_seconds
    if said.returncode:
        why = _why(said, line, timeout_seconds, pass_fds, enter).replace(str(model), shown or str(model))
        raise HbfError(f"llama-bench failed with exit code {said.returncode}: {why}")
    records = [_named(record, str(model), shown or str(model)) for record in _parse(said.stdout)]
    prefill, decode = _sampled(records, generating=False), _sampled(records, generating=True)
    return BenchRun(
        command=command(Path(binary.name), Path(shown or model), options, BENCH.flags(binary)),
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


def _why(
    said: child.Ended,
    line: Sequence[str],
    timeout_seconds: float,
    pass_fds: Sequence[int],
    enter: Callable[[], None] | None,
) -> str:
    """What llama.cpp says of a failure. Why it cannot load a model it says only with -v: asked again so."""
    why = failure.reason(said.stderr)
    if not why and "--verbose" in BENCH.flags(Path(line[0])):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, HbfError):
            told = child.run_group([*line, "-v"], timeout_seconds, pass_fds, None, enter, unprivileged=True)
            why = failure.reason(told.stderr)
    return why or failure.last_line(said.stdout, said.stderr)


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
            f"llama-bench printed something that is not a result ({error}): {output[:80]!r}"
        ) from error
    return records


def _sampled(records: list[dict[str, Any]], generating: bool) -> float:
    """Seconds of all samples of prefill, or of decode."""
    return sum(sum(record["samples_ns"]) for record in records if bool(record["n_gen"]) == generating) / 1e9


def _phases(lines: list[tuple[int, str]], records: list[dict[str, Any]]) -> list[Phase]:
    """When each test ran: --progress shows its beginning, its sample its duration. Empty if one of them is
    missing.
    """
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
