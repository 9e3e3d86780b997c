"""What one token costs in the KV cache."""

from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hbf_fuse.gguf.reader import GgufError, GgufFile

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What llama.cpp's -ctk and -ctv take (common/arg.cpp, kv_cache_types)."""

_HEADS, _KV_HEADS = "attention.head_count", "attention.head_count_kv"

MAX_NUMBER = 1 << 20
"""Of layers, heads and widths: far above any model's, and small enough for a list with one entry a layer."""


def cached_layers(model: GgufFile) -> int:
    """How many layers have a KV cache: hybrid models have one in some only. GgufError as bytes_per_token."""
    return sum(heads > 0 for heads in _kv_heads(model))


def bytes_per_token(model: GgufFile, cache_type_k: str = "f16", cache_type_v: str = "f16") -> int:
    """KV cache bytes per token: heads x (K width + V width) in the blocks of their types, over all layers.

    Raises GgufError with the reason where this formula does not hold, where the metadata lacks something,
    and for a type that is none or whose blocks do not divide a head's width.
    """
    kv_heads = _kv_heads(model)
    heads = _per_layer(model, _HEADS, number(model, "block_count"))
    head_width = number(model, "embedding_length") // max([1, *heads])
    key_bytes = _width_bytes(model, number(model, "attention.key_length", head_width), cache_type_k)
    value_bytes = _width_bytes(model, number(model, "attention.value_length", head_width), cache_type_v)
    return sum(kv_heads) * (key_bytes + value_bytes)


def _kv_heads(model: GgufFile) -> list[int]:
    """Of each layer that may have a cache."""
    for field, what in (
        ("attention.kv_lora_rank", "latent attention (MLA)"),
        ("attention.sliding_window", "sliding-window attention"),
    ):
        if model.field(field):
            raise GgufError(f"{model.path} uses {what}: its KV cache does not grow by a fixed size per token")
    layers = number(model, "block_count")
    if model.field("full_attention_interval") and not isinstance(model.field(_KV_HEADS), list):
        raise GgufError(f"{model.path} has layers without attention, and does not list which have a KV cache")
    # Layers for predicting further tokens, and such as use another layer's cache, have none.
    without = number(model, "nextn_predict_layers", 0) + number(model, "attention.shared_kv_layers", 0)
    cached = max(0, layers - without)
    return _per_layer(model, _HEADS if model.field(_KV_HEADS) is None else _KV_HEADS, layers)[:cached]


def number(model: GgufFile, name: str, default: int | None = None) -> int:
    """A whole number of the metadata, or a GgufError if it is none or none that a model can have."""
    value = model.field(name, default)
    if value is None:
        raise GgufError(f"{model.path} has no {model.architecture}.{name} in its metadata")
    return _believed(model, name, value)


def _per_layer(model: GgufFile, name: str, layers: int) -> list[int]:
    """A number that is the same for all layers, or a list with one for each."""
    value = model.field(name)
    if isinstance(value, list):
        if len(value) != layers:
            raise GgufError(
                f"{model.path}: {model.architecture}.{name} is a list of {len(value)} for {layers} layers"
            )
        return [_believed(model, name, each) for each in value]
    return [number(model, name)] * layers


def _believed(model: GgufFile, name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise GgufError(f"{model.path}: {model.architecture}.{name} is no number that a model can have")
    return value


def _width_bytes(model: GgufFile, width: int, cache_type: str) -> int:
    if cache_type not in CACHE_TYPES:
        raise GgufError(f"unknown cache type {cache_type!r}; llama.cpp has {', '.join(CACHE_TYPES)}")
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[cache_type.upper()]]
    if width % block:
        raise GgufError(f"{model.path}: a head's width of {width} is no multiple of {cache_type}'s {block}")
    return width // block * block_bytes
