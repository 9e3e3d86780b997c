"""The reads that a mount recorded of a cell's model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hbf_fuse.engine import MEMORY
from hbf_fuse.gguf import GgufFile
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import attribution
from hbf_fuse.traces.trace import Read, Trace


@dataclass(frozen=True)
class Recorded:
    """reads: of the model's files. specs: of the tiers by name, in the order of their places. model: what is
    where in the files. mapped: the reads are faults of the memory engine.
    """

    reads: list[Read]
    specs: Mapping[str, TierSpec]
    model: GgufFile
    mapped: bool

    @classmethod
    def of(cls, trace: Trace, paths: Sequence[str], model: GgufFile) -> "Recorded":
        """paths: of the model's files in the mount."""
        specs = {name: TierSpec.from_dict(fields) for name, fields in trace.header["tiers"].items()}
        return cls(attribution.of_files(trace, paths), specs, model, trace.header.get("engine") == MEMORY)

    def inside(self, windows: Sequence[tuple[int, int]]) -> list[Read]:
        """Those that arrived in one of these windows, begin and end in ns."""
        return [read for read in self.reads if any(start <= read.arrival_ns < end for start, end in windows)]
