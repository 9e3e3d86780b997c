"""Which experts a step of decode reads, and how many a batch would."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from hbf_fuse.gguf.reader import Tensor
from hbf_fuse.traces.attribution import TensorMap, experts_in, layer_of
from hbf_fuse.traces.trace import Read

Expert = tuple[str, int]
"""A layer and the number of an expert in it."""

TOUCHED_SHARE = 0.5
"""Of an expert's bytes: if a step reads at least so much, it used the expert. Less is readahead beyond a
neighbour.
"""


@dataclass(frozen=True)
class Routing:
    """Of a window of decode: its steps, in how many of them each expert was read, the bytes of each, and the
    bytes that were read of anything else, per step.
    """

    steps: int
    used: dict[Expert, int]
    nbytes: dict[Expert, int]
    other_bytes: float

    @property
    def per_step(self) -> float:
        """Unique experts that a step reads, over all layers."""
        return sum(self.used.values()) / self.steps

    def per_step_of(self, batch: int) -> float:
        """The same for a batch, if its users are routed independently of each other: an expert is read
        unless all of them pass it by.
        """
        return sum(self._chance(expert, batch) for expert in self.used)

    def bytes_of(self, batch: int) -> float:
        """What a step of a batch reads, in bytes."""
        experts = sum(self._chance(expert, batch) * self.nbytes[expert] for expert in self.used)
        return self.other_bytes + experts

    def _chance(self, expert: Expert, batch: int) -> float:
        return 1.0 - (1.0 - self.used[expert] / self.steps) ** batch


def sizes(tensors: Sequence[Tensor]) -> Counter[Expert]:
    """Bytes of each expert."""
    found: Counter[Expert] = Counter()
    for tensor in tensors:
        for number, nbytes in experts_in(tensor, tensor.offset, tensor.nbytes):
            found[layer_of(tensor.name), number] += nbytes
    return found


def routing(
    reads: Sequence[Read], tensors: Sequence[Tensor], steps_ns: Sequence[tuple[int, int]]
) -> Routing | None:
    """The routing in these steps, each with its begin and end; None of a model without experts, or where
    none was read. An expert's bytes are those of its largest reads in a step: what is resident costs nothing.
    """
    whole = sizes(tensors)
    if not whole or not steps_ns:
        return None
    known = TensorMap(tensors)
    used: Counter[Expert] = Counter()
    read: dict[Expert, int] = defaultdict(int)
    other, ordered, place = 0, sorted(reads, key=lambda each: each.arrival_ns), 0
    for start_ns, end_ns in steps_ns:
        step: Counter[Expert] = Counter()
        while place < len(ordered) and ordered[place].arrival_ns < start_ns:
            place += 1
        while place < len(ordered) and ordered[place].arrival_ns < end_ns:
            each = ordered[place]
            place += 1
            other += each.nbytes
            for part, offset, nbytes in known.parts(each.offset, each.nbytes):
                for number, share in experts_in(part, offset, nbytes):
                    step[layer_of(part.name if part else ""), number] += share
        for expert, nbytes in step.items():
            if nbytes >= TOUCHED_SHARE * whole[expert]:
                used[expert] += 1
                read[expert] = max(read[expert], nbytes)
                other -= nbytes
    if not used:
        return None
    return Routing(len(steps_ns), dict(used), dict(read), other / len(steps_ns))
