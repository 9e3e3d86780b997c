"""What a cell runs: llama-bench, or llama-server under load; from wherever its mode has the weights."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hbf_fuse import gguf
from hbf_fuse.errors import HbfError
from hbf_fuse.host import residency
from hbf_fuse.sweep.cell import Cell
from hbf_fuse.sweep.workspace import Workspace
from hbf_fuse.workload import llama, program, serve
from hbf_fuse.workload.child import NO_VARIABLES
from hbf_fuse.workload.llama import BenchRun
from hbf_fuse.workload.program import Program

STARTS = 3
"""Of a server from memory, where only its start is needed."""


def program_of(cell: Cell) -> Program:
    """The program of its workload."""
    return program.BENCH if cell.serve is None else program.SERVER


def check(options: llama.BenchOptions, serves: bool) -> None:
    """HbfError if the program is missing here, or does not have an option that is asked for."""
    if serves:
        serve.check(options)
        program.SERVER.find()
    else:
        llama.check(options, program.BENCH.find())


def run(
    cell: Cell,
    workspace: Workspace,
    model: Path,
    *,
    shown: str,
    pass_fds: Sequence[int] = (),
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    environment: Mapping[str, str] = NO_VARIABLES,
    phase: Callable[[str], object] = lambda _: None,
    cold_only: bool = False,
) -> BenchRun:
    """Run the cell's workload once on `model`. phase, cold_only: of llama-server; see serve.run."""
    how: dict[str, Any] = {"pass_fds": pass_fds, "enter": enter, "require": require, "shown": shown}
    how["environment"] = environment
    binary = program_of(cell).find()
    if cell.serve is None:
        return llama.run(binary, model, cell.options, cell.timeout_seconds, **how)
    return serve.run(
        binary,
        model,
        cell.options,
        cell.serve,
        _vocabulary(cell),
        workspace.mountpoint.parent,
        cell.timeout_seconds,
        **how,
        phase=phase,
        cold_only=cold_only,
    )


def from_memory(cell: Cell, workspace: Workspace) -> BenchRun | None:
    """The same from the page cache, to know what all but the tier takes; None where nothing asks for it.

    Of a server whose weights will lie in memory once they are loaded, the cold start is enough: the median
    one, because a start takes 10 to 20% more or less each time.
    """
    path = cell.model.path
    if cell.serve is None:
        return run(cell, workspace, path, shown=path.name) if cell.mode == "stream" else None
    residency.fill(*cell.model.parts)
    if cell.mode == "stream":
        return run(cell, workspace, path, shown=path.name)
    starts = [run(cell, workspace, path, shown=path.name, cold_only=True) for _ in range(STARTS)]
    return sorted(starts, key=_ttft)[STARTS // 2]


def _ttft(started: BenchRun) -> float:
    return started.load_seconds + started.prefill_seconds


def _vocabulary(cell: Cell) -> int:
    """How many tokens the model knows: the rows of its embedding."""
    model = gguf.read_whole(cell.model.parts)
    if model.metadata.get("tokenizer.ggml.model") == "no_vocab":
        raise HbfError(
            f"{cell.model.path} has no vocabulary, which llama-server needs",
            "name another model; of the synthetic ones, `hbf model make tiny` has one",
        )
    for tensor in model.tensors:
        if tensor.name == "token_embd.weight" and tensor.shape:
            return tensor.shape[-1]
    raise HbfError(f"{cell.model.path} has no token_embd.weight", "the workload serve needs a language model")
