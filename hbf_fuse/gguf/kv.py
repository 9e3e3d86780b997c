"""What one token costs in the KV cache."""

from hbf_fuse.gguf.reader import GgufError, GgufFile

F16_BYTES = 2


def bytes_per_token(model: GgufFile) -> int:
    """KV cache bytes per token at f16: (K width + V width) x 2, summed over layers.

    Raises GgufError with the reason where this formula does not hold or the metadata lacks something.
    """
    for field, what in (
        ("attention.kv_lora_rank", "latent attention (MLA)"),
        ("attention.sliding_window", "sliding-window attention"),
    ):
        if model.field(field):
            raise GgufError(f"{model.path} uses {what}: its KV cache does not grow by a fixed size per token")
    layers = _number(model, "block_count")
    heads = model.field("attention.head_count")
    kv_heads = model.field("attention.head_count_kv", heads)
    per_layer = kv_heads if isinstance(kv_heads, list) else [kv_heads] * layers
    if heads is None or not all(isinstance(count, int) for count in per_layer):
        raise GgufError(f"{model.path} has no attention.head_count in its metadata")
    first_heads = max(heads) if isinstance(heads, list) else heads
    head_width = _number(model, "embedding_length") // max(first_heads, 1)
    width = model.field("attention.key_length", head_width) + model.field(
        "attention.value_length", head_width
    )
    return int(sum(per_layer) * width * F16_BYTES)


def _number(model: GgufFile, name: str) -> int:
    value = model.field(name)
    if not isinstance(value, int):
        raise GgufError(f"{model.path} has no {model.architecture}.{name} in its metadata")
    return value
