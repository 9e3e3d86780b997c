"""What the commands of `hbf kv` take from a model: what of its cache grows, and what does not."""

from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.cli.common import tell
from hbf_fuse.errors import HbfError


@dataclass(frozen=True)
class Cached:
    """A stream's cache at a context. growing_bytes: of each token; layers: that have such. constant_bytes:
    windows and states; touched_bytes: what a token reads of the former, and reads and writes of the latter.
    """

    context: int
    growing_bytes: int
    layers: int
    constant_bytes: int
    touched_bytes: int

    @property
    def moved_bytes(self) -> int:
        """What a token reads and writes of all of it."""
        return self.context * self.growing_bytes + self.touched_bytes


def of_contexts(model: Path, contexts: list[int], cache_type_k: str, cache_type_v: str) -> list[Cached]:
    """A model's cache at each context. One beyond the model's is a warning. HbfError for a model without a
    cache.
    """
    from hbf_fuse.gguf import kv
    from hbf_fuse.models import split

    described = split.read_model(model)
    if why := kv.without(described):
        raise HbfError(f"{model} ({described.architecture}) has no KV cache: {why}", "name another model")
    if remark := kv.remark(described):
        tell(remark)
    trained = described.field("context_length")
    for context in contexts:
        if isinstance(trained, int) and context > trained:
            tell(f"a context of {context} is beyond the model's {trained}")
    found = []
    for context in contexts:
        parts = kv.parts(described, context, 1, cache_type_k, cache_type_v)
        constant = [part for part in parts if not part.tokens_per_cell]
        found.append(
            Cached(
                context=context,
                growing_bytes=sum(part.bytes_per_token for part in parts),
                # What does not grow is not read by layers.
                layers=max(1, kv.cached_layers(described)),
                constant_bytes=sum(part.nbytes for part in constant),
                touched_bytes=sum(part.nbytes * (2 if part.kind == "state" else 1) for part in constant),
            )
        )
    return found
