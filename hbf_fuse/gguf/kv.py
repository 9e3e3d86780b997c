"""What one token costs in the KV cache."""

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hbf_fuse.gguf.reader import GgufError, GgufFile

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What llama.cpp's -ctk and -ctv take (common/arg.cpp, kv_cache_types)."""


def bytes_per_token(model: GgufFile, cache_type_k: str = "f16", cache_type_v: str = "f16") -> int:
    """KV cache bytes per token: heads x (K width + V width) in the blocks of their types, over all layers.

    Raises GgufError with the reason where this formula does not hold, where the metadata lacks something,
    and for a type that is none or whose blocks do not divide a head's width.
    """
    for field, what in (
        ("attention.kv_lora_rank", "latent attention (MLA)"),
        ("attention.sliding_window", "sliding-window attention"),
    ):
        if model.field(field):
            raise GgufError(f"{model.path} uses {what}: its KV cache does not grow by a fixed size per token")
    layers = number(model, "block_count")
    heads = model.field("attention.head_count")
    kv_heads = model.field("attention.head_count_kv", heads)
    per_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads] * layers
    if heads is None or not all(isinstance(count, int) for count in per_layer):
        raise GgufError(f"{model.path} has no attention.head_count in its metadata")
    first_heads = max(heads) if isinstance(heads, list) else heads
    head_width = number(model, "embedding_length") // max(first_heads, 1)
    key_bytes = _width_bytes(model, model.field("attention.key_length", head_width), cache_type_k)
    value_bytes = _width_bytes(model, model.field("attention.value_length", head_width), cache_type_v)
    return sum(per_layer) * (key_bytes + value_bytes)


def number(model: GgufFile, name: str) -> int:
    """A whole number of the metadata, or a GgufError."""
    value = model.field(name)
    if not isinstance(value, int):
        raise GgufError(f"{model.path} has no {model.architecture}.{name} in its metadata")
    return value


def _width_bytes(model: GgufFile, width: int, cache_type: str) -> int:
    if cache_type not in CACHE_TYPES:
        raise GgufError(f"unknown cache type {cache_type!r}; llama.cpp has {', '.join(CACHE_TYPES)}")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    if width % block:
        raise GgufError(f"{model.path}: a head's width of {width} is no multiple of {cache_type}'s {block}")
    return width // block * block_bytes
