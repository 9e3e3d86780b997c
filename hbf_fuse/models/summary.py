"""`hbf model info` as a document: what a model is made of, and what a tier gives, by arithmetic alone."""

from pathlib import Path
from typing import Any

from hbf_fuse import gguf
from hbf_fuse.gguf import GgufError, GgufFile, kinds, kv, weights
from hbf_fuse.models import choice, split

CONTEXTS = (8192, 32_768, 131_072)
TIERS_MBPS = (500.0, 1_600_000.0)
"""A SATA SSD, and HBF."""


def describe(file: Path) -> dict[str, Any]:
    """Of the whole model that a file belongs to. Raises as split.read_model does.

    What its metadata does not say is None, and `kv_remark` has the reason.
    """
    file = choice.file_of(file)
    parts = split.parts_of(file)
    model = gguf.read_whole(parts)
    sizes = [part.stat().st_size for part in parts]
    no_decode = _no_decode(model)
    active = None if no_decode else weights.active_bytes(model)
    name = model.metadata.get("general.name")
    return {
        "file": str(file),
        "name": name if isinstance(name, str) else None,
        "kind": kinds.of_model(model),
        "doubt": kinds.doubt(model, file),
        "architecture": model.architecture,
        "size_bytes": sum(sizes),
        "parts": [{"file": part.name, "size_bytes": size} for part, size in zip(parts, sizes, strict=True)],
        "layers": _whole(model, "block_count"),
        "context": _whole(model, "context_length"),
        "parameters": weights.parameters(model),
        "tensor_count": len(model.tensors),
        "tensor_bytes": model.tensor_bytes,
        "bytes_by_type": weights.bytes_by_type(model),
        "groups": {
            group: {"bytes": nbytes, "share": nbytes / model.tensor_bytes}
            for group, nbytes in weights.bytes_by_group(model).items()
        },
        "experts": _experts(model),
        "output_is_embedding": weights.is_tied(model),
        "active_bytes_per_token": active,
        "no_decode": no_decode,
        **_cache(model),
        "tiers": [_tier(mbps, sum(sizes), active) for mbps in TIERS_MBPS],
        "tensors": [
            {"name": t.name, "type": t.type, "shape": t.shape, "nbytes": t.nbytes, "offset": t.offset}
            for t in model.tensors
        ],
    }


def _whole(model: GgufFile, name: str) -> int | None:
    value = model.field(name)
    return value if type(value) is int else None


def _no_decode(model: GgufFile) -> str:
    """Why no token is decoded with it; empty for a language model."""
    if not weights.decodes(model):
        return "it has no token embeddings"
    try:
        return kv.without(model)
    except GgufError:
        return ""  # not known here, which is said of its cache


def _experts(model: GgufFile) -> dict[str, Any] | None:
    found = weights.experts(model)
    if found is None:
        return None
    return {
        "count": found.count,
        "used": found.used,
        "bytes": found.nbytes,
        "used_bytes_per_token": found.used_bytes,
    }


def _cache(model: GgufFile) -> dict[str, Any]:
    """The KV cache in f16: bytes of a token, and of some contexts of one sequence. kv_remark: why there is
    none, or why it is a guess.
    """
    found: dict[str, Any] = {"kv_bytes_per_token_f16": None, "kv_f16": []}
    try:
        if without := kv.without(model):
            return {**found, "kv_remark": f"no cache: {without}"}
        return {
            "kv_bytes_per_token_f16": kv.bytes_per_token(model),
            "kv_f16": [
                {"context": context, "bytes": sum(part.nbytes for part in kv.parts(model, context))}
                for context in CONTEXTS
            ],
            "kv_remark": _short(kv.remark(model), model),
        }
    except GgufError as error:
        return {**found, "kv_remark": f"unknown: {_short(error.what, model)}"}


def _short(text: str, model: GgufFile) -> str:
    return text.replace(str(model.path), model.path.name)


def _tier(mbps: float, size: int, active: int | None) -> dict[str, float | None]:
    """staging_seconds: to read the files once. decode_ceiling_tps: tokens/s with nothing resident."""
    return {
        "mbps": mbps,
        "staging_seconds": size / (mbps * 1e6),
        "decode_ceiling_tps": mbps * 1e6 / active if active else None,
    }
