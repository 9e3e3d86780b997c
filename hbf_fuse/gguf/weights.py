"""What a model's weights are for, by the names that llama.cpp gives to tensors (src/llama-arch.cpp), and what
one decoded token reads of them.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from hbf_fuse.gguf.reader import GgufFile, Tensor

PREDICTION = "prediction"
"""Layers that predict further tokens (MTP). Plain decode does not read them."""

EXPERTS, OTHER = "experts", "other"

_GROUPS = {
    EXPERTS: re.compile(r"_(ch)?exps\.|\.ffn_(gate|up|down)\.\d+\."),
    "embedding": re.compile(r"^(token_embd|per_layer_token_embd|position_embd|token_types)\."),
    "output_and_norms": re.compile(r"norm|^(dec\.)?output|^cls|^rope_"),
    "recurrent": re.compile(r"\bblk\.\d+\.(ssm_|time_mix_|shortconv)"),
    "attention": re.compile(r"\bblk\.\d+\.(attn_|cross_attn|indexer)"),
    "dense_ffn": re.compile(r"\bblk\.\d+\.(ffn_|channel_mix_|exp_probs)"),
}
"""The first that fits counts. dense_ffn: with shared experts and routers, which every token reads."""

GROUPS = (
    "embedding",
    "attention",
    "recurrent",
    "dense_ffn",
    EXPERTS,
    "output_and_norms",
    PREDICTION,
    OTHER,
)

_PREDICTS = re.compile(r"^blk\.(\d+)\.nextn\.")
_LAYER = re.compile(r"^blk\.(\d+)\.")
_ONE_EXPERT = re.compile(r"\.ffn_(gate|up|down)\.\d+\.")
_LOOKUPS = ("per_layer_token_embd.", "position_embd.", "token_types.")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Experts:
    """count: of a layer; used: by a token, None if the file does not say. Both without shared experts.
    nbytes: of all; used_bytes: of those that a token uses.
    """

    count: int
    used: int | None
    nbytes: int
    used_bytes: int


def bytes_by_type(model: GgufFile) -> dict[str, int]:
    """Bytes of each type of tensor, most first."""
    found: dict[str, int] = {}
    for tensor in model.tensors:
        found[tensor.type] = found.get(tensor.type, 0) + tensor.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def bytes_by_group(model: GgufFile) -> dict[str, int]:
    """Bytes of each of GROUPS that the model has."""
    found, group_of = dict.fromkeys(GROUPS, 0), groups(model)
    for tensor in model.tensors:
        found[group_of(tensor)] += tensor.nbytes
    return {group: nbytes for group, nbytes in found.items() if nbytes}


def groups(model: GgufFile) -> Callable[[Tensor], str]:
    """What tells the group of a tensor of this model."""
    predicting = _predicting(model)
    return partial(_group, predicting=predicting)


def parameters(model: GgufFile) -> int:
    return sum(math.prod(tensor.shape) for tensor in model.tensors)


def experts(model: GgufFile) -> Experts | None:
    """None for a model without experts."""
    predicting = _predicting(model)
    tensors = [tensor for tensor in model.tensors if _group(tensor, predicting) == EXPERTS]
    if not tensors:
        return None
    return Experts(
        count=_count(model, tensors[0]),
        used=_number(model, "expert_used_count"),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        used_bytes=sum(_used_bytes(model, tensor) for tensor in tensors),
    )


def decodes(model: GgufFile) -> bool:
    """Whether it looks like a language model: it has token embeddings."""
    return any(tensor.name == _EMBEDDING for tensor in model.tensors)


def is_tied(model: GgufFile) -> bool:
    """Whether the embeddings are the output, too: it has no output of its own."""
    return decodes(model) and all(tensor.name != _OUTPUT for tensor in model.tensors)


def active_bytes(model: GgufFile) -> int:
    """Bytes that one token of plain decode reads: all weights but unused experts, an encoder, layers for
    further tokens, and of tables of embeddings all but one row. llama.cpp reads all of token_embd where it is
    the output, too.
    """
    return sum(part.active for part in active_parts(model))


class ActivePart(NamedTuple):
    """active: bytes of a tensor that a token reads. piece: what of it is read as one: an expert, or all."""

    tensor: Tensor
    active: int
    piece: int


def active_parts(model: GgufFile) -> list[ActivePart]:
    """Every tensor, in the order of the file."""
    group_of, tied = groups(model), is_tied(model)
    found = []
    for tensor in sorted(model.tensors, key=lambda each: each.offset):
        group = group_of(tensor)
        pieces = _count(model, tensor) if group == EXPERTS and not _ONE_EXPERT.search(tensor.name) else 1
        active = _active(model, tensor, group, tied)
        found.append(ActivePart(tensor, active, tensor.nbytes // max(1, pieces)))
    return found


def _active(model: GgufFile, tensor: Tensor, group: str, tied: bool) -> int:
    if group == PREDICTION or tensor.name.startswith("enc."):
        return 0
    if group == EXPERTS:
        return _used_bytes(model, tensor)
    if tensor.name.startswith(_LOOKUPS) or (tensor.name == _EMBEDDING and not tied):
        return tensor.nbytes // max(1, math.prod(tensor.shape[1:]))
    return tensor.nbytes


def _used_bytes(model: GgufFile, tensor: Tensor) -> int:
    """Of a tensor with a layer's experts, or one of them: what a token uses, on average."""
    count, used = _count(model, tensor), _number(model, "expert_used_count")
    return tensor.nbytes if used is None else tensor.nbytes * min(used, count) // max(1, count)


def _count(model: GgufFile, tensor: Tensor) -> int:
    """How many experts a layer has: all in one tensor, or (old files) a tensor each."""
    if _ONE_EXPERT.search(tensor.name):
        return _number(model, "expert_count") or 1
    return tensor.shape[-1] if tensor.shape else 1


def _number(model: GgufFile, name: str) -> int | None:
    value = model.field(name)
    return value if type(value) is int and value > 0 else None


def _predicting(model: GgufFile) -> frozenset[str]:
    return frozenset(found[1] for tensor in model.tensors if (found := _PREDICTS.match(tensor.name)))


def _group(tensor: Tensor, predicting: frozenset[str]) -> str:
    if predicting and (layer := _LAYER.match(tensor.name)) and layer[1] in predicting:
        return PREDICTION
    fitting = (group for group, pattern in _GROUPS.items() if pattern.search(tensor.name))
    return next(fitting, OTHER)
