"""Which bytes were read: a trace mapped to a model's tensors, by tensor, layer, expert and phase."""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf.reader import GgufFile, Tensor
from hbf_fuse.gguf.whole import bases
from hbf_fuse.models import split
from hbf_fuse.traces.trace import Read, Trace, joined, wholes

HEADER = "(header)"
"""Name for bytes outside of all tensors."""

LOAD = "load"
MAX_EXPERTS = 4096
"""Per tensor; models have some hundred. With more, the name does not mean experts."""

MOST_LAYERS = 512
"""Layers of a heat map, at most: no model has more, and no picture could show them."""

_LAYER = re.compile(r"^blk\.(\d+)\.")
_EXPERTS = re.compile(r"_exps\.")


@dataclass(frozen=True)
class Phase:
    """Prefill or decode of some tokens, CLOCK_MONOTONIC in ns. Reads before the first phase are load."""

    name: str
    tokens: int
    start_ns: int
    end_ns: int


@dataclass
class Share:
    """Reads of one thing. stall_ns: from arrival to data, divided among a read's tensors by bytes. Reads
    overlap, so it may exceed the time that passed.
    """

    nbytes: float = 0.0
    reads: int = 0
    stall_ns: float = 0.0

    def add(self, nbytes: float, stall_ns: float) -> None:
        self.nbytes += nbytes
        self.reads += 1
        self.stall_ns += stall_ns

    def to_dict(self, size: int = 0) -> dict[str, Any]:
        """times_read: bytes read over the size; the read amplification of a reader that needs every byte
        once.
        """
        known: dict[str, Any] = {
            "bytes": round(self.nbytes),
            "reads": self.reads,
            "stall_seconds": self.stall_ns / 1e9,
        }
        return {**known, "times_read": self.nbytes / size} if size else known


@dataclass
class Attribution:
    """Shares by what was read. Keys of `phases` are load, prefill and decode; of `tokens` 0, 1, ..."""

    tensors: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    layers: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    experts: dict[tuple[str, int], Share] = field(default_factory=lambda: defaultdict(Share))
    phases: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    tokens: dict[int, Share] = field(default_factory=lambda: defaultdict(Share))
    tiers: dict[tuple[str, str], Share] = field(default_factory=lambda: defaultdict(Share))
    """By (tier, tensor)."""


class TensorMap:
    """Finds the tensors in a range of the file."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = sorted(tensors, key=lambda tensor: tensor.offset)
        self._starts = [tensor.offset for tensor in self._tensors]

    def parts(self, offset: int, nbytes: int) -> Iterator[tuple[Tensor | None, int, int]]:
        """(tensor, first byte, bytes) of every part of the range; tensor is None outside of all tensors."""
        end = offset + nbytes
        place = bisect_right(self._starts, offset) - 1
        while offset < end:
            tensor = self._tensors[place] if place >= 0 else None
            inside = tensor is not None and offset < tensor.offset + tensor.nbytes
            following = self._starts[place + 1] if place + 1 < len(self._starts) else end
            until = min(end, tensor.offset + tensor.nbytes if tensor and inside else following)
            yield tensor if inside else None, offset, until - offset
            offset = until
            place += offset >= following


def layer_of(name: str) -> str:
    """A tensor's layer as "0", "1", ...; for a tensor outside of layers, its name without the suffix."""
    found = _LAYER.match(name)
    return found[1] if found else name.removesuffix(".weight")


def attribute(
    trace: Iterable[Read], names: Sequence[str], tensors: Sequence[Tensor], phases: Sequence[Phase]
) -> Attribution:
    """Map the reads of one model file to its tensors. names: of the tiers, by their places.

    Decoded tokens are told apart by time: a decode phase is divided evenly among its tokens.
    """
    found, known = Attribution(), TensorMap(tensors)
    for parts in wholes(trace):
        whole = joined(parts)
        phase, token = _when(whole.arrival_ns, phases)
        stall, size = whole.done_ns - whole.arrival_ns, whole.nbytes
        found.phases[phase].add(size, stall)
        if token is not None:
            found.tokens[token].add(size, stall)
        for read in parts:
            for tensor, offset, nbytes in known.parts(read.offset, read.nbytes):
                share = stall * nbytes / size
                name = tensor.name if tensor else HEADER
                found.tensors[name].add(nbytes, share)
                found.layers[layer_of(name)].add(nbytes, share)
                found.tiers[names[read.tier], name].add(nbytes, share)
                for expert, part in experts_in(tensor, offset, nbytes):
                    found.experts[layer_of(name), expert].add(part, share * part / nbytes)
    return found


def _when(arrival_ns: int, phases: Sequence[Phase]) -> tuple[str, int | None]:
    """The phase, and in decode the number of the token."""
    for phase in reversed(phases):
        if arrival_ns >= phase.start_ns:
            if phase.name != "decode" or arrival_ns >= phase.end_ns:
                return phase.name, None
            return phase.name, (arrival_ns - phase.start_ns) * phase.tokens // (phase.end_ns - phase.start_ns)
    return LOAD, None


def experts_in(tensor: Tensor | None, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """(expert, bytes) of a range of a tensor that holds all experts of a layer, one after the other."""
    if tensor is None or not tensor.shape or not _EXPERTS.search(tensor.name):
        return
    each = tensor.nbytes // tensor.shape[-1]
    if not each or tensor.shape[-1] > MAX_EXPERTS:
        return
    start, end = offset - tensor.offset, offset - tensor.offset + nbytes
    while start < end:
        expert = start // each
        until = min(end, (expert + 1) * each)
        yield expert, until - start
        start = until


def sizes(trace: Iterable[Read]) -> dict[int, int]:
    """Number of reads by size in bytes."""
    return dict(sorted(Counter(joined(parts).nbytes for parts in wholes(trace)).items()))


def depths(trace: Iterable[Read]) -> dict[int, int]:
    """Queue depth: number of arrivals by reads in flight, the arriving one included."""
    reads = map(joined, wholes(trace))
    events = sorted(event for read in reads for event in ((read.arrival_ns, 1), (read.done_ns, -1)))
    found: Counter[int] = Counter()
    in_flight = 0
    for _, step in events:
        in_flight += step
        if step > 0:
            found[in_flight] += 1
    return dict(sorted(found.items()))


def heat(
    trace: Iterable[Read], tensors: Sequence[Tensor], bins: int
) -> tuple[list[str], list[float], list[list[float]]]:
    """Bytes by layer and time: the layers in file order, at most MOST_LAYERS; the bins' ends in seconds from
    the first arrival; and a row of bytes per layer.
    """
    reads, known = list(trace), TensorMap(tensors)
    order = [layer_of(tensor.name) for tensor in sorted(tensors, key=lambda each: each.offset)]
    layers = list(dict.fromkeys(order))[:MOST_LAYERS]
    if not reads:
        return layers, [], [[] for _ in layers]
    first = min(read.arrival_ns for read in reads)
    width = max(1, max(read.arrival_ns for read in reads) - first + 1) / bins
    rows = {layer: [0.0] * bins for layer in layers}
    for read in reads:
        column = int((read.arrival_ns - first) / width)
        for tensor, _, nbytes in known.parts(read.offset, read.nbytes):
            if tensor and layer_of(tensor.name) in rows:
                rows[layer_of(tensor.name)][min(column, bins - 1)] += nbytes
    return layers, [width * (place + 1) / 1e9 for place in range(bins)], list(rows.values())


def of_model(trace: Trace, model: GgufFile) -> list[Read]:
    """The reads of the trace's model that is this one: of the same size. If several are, also of the same
    name. Offsets of a split model's parts are as gguf/whole.py lays them out.

    HbfError if there is none.
    """
    same = [files for files in _models(trace) if bases([file.size for file in files])[-1] == model.size]
    named = [files for files in same if Path(files[0].path).name == model.path.name]
    if not same:
        raise HbfError(f"the trace has no file of {model.size} bytes: {model.path} is not what was served")
    return _reads_of(trace, (named or same)[0])


def of_files(trace: Trace, paths: Sequence[str]) -> list[Read]:
    """The reads of a model's files, by their paths in the mount. Offsets as above."""
    files = {file.path: file for file in _files(trace)}
    return _reads_of(trace, [files[path] for path in paths if path in files])


class _Served(NamedTuple):
    ino: int
    path: str
    size: int


def _files(trace: Trace) -> list[_Served]:
    return [_Served(int(ino), file["path"], int(file["size"])) for ino, file in trace.header["files"].items()]


def _models(trace: Trace) -> list[list[_Served]]:
    """The served files, those of a split model together."""
    files = _files(trace)
    sets = split.sets([file.path for file in files])
    parts = {place for places in sets for place in places}
    alone = [[file] for place, file in enumerate(files) if place not in parts]
    return [*([files[place] for place in places] for places in sets), *alone]


def _reads_of(trace: Trace, files: Sequence[_Served]) -> list[Read]:
    *starts, _ = bases([file.size for file in files])
    base = {file.ino: start for file, start in zip(files, starts, strict=True)}
    if not any(base.values()):
        return [read for read in trace if read.ino in base]
    return [read._replace(offset=base[read.ino] + read.offset) for read in trace if read.ino in base]
