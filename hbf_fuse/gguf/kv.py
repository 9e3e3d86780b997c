"""A model's cache: its parts as llama.cpp allocates them, and what one more token costs."""

from collections.abc import Callable

from hbf_fuse.gguf import caches, geometry
from hbf_fuse.gguf.caches import CachePart
from hbf_fuse.gguf.geometry import Geometry
from hbf_fuse.gguf.reader import GgufError, GgufFile
from hbf_fuse.gguf.tensor_types import TYPES

__all__ = ["CACHE_TYPES", "CachePart", "bytes_per_token", "cached_layers", "parts", "remark", "without"]

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""What llama.cpp's -ctk and -ctv take (common/arg.cpp, kv_cache_types)."""

_BATCH = 2048
"""llama.cpp's -b where nobody names one: a window's batch is no larger."""


def parts(
    model: GgufFile,
    context: int,
    parallel: int = 1,
    cache_type_k: str = "f16",
    cache_type_v: str = "f16",
    unified: bool = False,
    ubatch: int = 512,
) -> tuple[CachePart, ...]:
    """What llama.cpp allocates for -c context -np parallel, a part a kind of cache; none where a model has
    no cache.

    context: tokens of all sequences together, as llama.cpp counts. unified: they share one cache (-kvu).
    ubatch: its -ub; windows have room for so much more. Raises GgufError where the metadata lacks something,
    for a type that is none or whose blocks do not divide a head's width, and for what llama.cpp refuses.
    """
    if without(model):
        return ()
    known = geometry.of(model)
    if (known.mla or known.rules.compressed) and cache_type_k != cache_type_v:
        raise GgufError(
            f"{model.path} caches keys alone, for which llama.cpp wants the same type twice, "
            f"not {cache_type_k} and {cache_type_v}",
            f"-ctk {cache_type_k} -ctv {cache_type_k}",
        )
    whole = caches.padded(context)
    cells = whole if unified else max(256, caches.padded(whole // parallel))
    causal = model.field("attention.causal", True) is not False
    asked = caches.Asked(
        key_row=_row(model, known, cache_type_k, Geometry.key_width),
        value_row=_row(model, known, cache_type_v, Geometry.value_width),
        cells=cells,
        window_room=min(min(context, _BATCH) if causal else _BATCH, ubatch),
        parallel=parallel,
        unified=unified,
    )
    if known.rules.padded_values and _block(cache_type_v)[0] > 1:
        raise GgufError(
            f"{model.path}: llama.cpp caches the values of {known.rules.name} in f32, f16 or bf16 alone"
        )
    return tuple(part for part in caches.parts(model, known, asked) if part.layers)


def bytes_per_token(model: GgufFile, cache_type_k: str = "f16", cache_type_v: str = "f16") -> int:
    """By how much the cache of a sequence grows with each token, once no window does: 0 where nothing does.

    Raises GgufError as parts.
    """
    found = parts(model, 1, 1, cache_type_k, cache_type_v)
    return sum(part.bytes_per_token for part in found)


def cached_layers(model: GgufFile) -> int:
    """How many layers have a cache that grows. GgufError as parts."""
    if without(model):
        return 0
    known = geometry.of(model)
    if known.rules.compressed:
        return max((part.layers for part in parts(model, 1) if part.tokens_per_cell), default=0)
    return sum(
        attends and not windowed and heads > 0
        for attends, windowed, heads in zip(known.attends, known.windowed, known.kv_heads, strict=True)
    )


def without(model: GgufFile) -> str:
    """Why a model has no cache; empty where it has one. GgufError for a file that is no model."""
    return geometry.rules_of(model).without


def remark(model: GgufFile) -> str:
    """What is to be told with the figures: that they are a guess, for an architecture that is unknown."""
    if geometry.rules_of(model).known:
        return ""
    return (
        f"{model.path}: the architecture {model.architecture} is unknown here; "
        "keys and values of every token in every layer are taken for its cache"
    )


def _block(cache_type: str) -> tuple[int, int]:
    if cache_type not in CACHE_TYPES:
        raise GgufError(f"unknown cache type {cache_type!r}", f"llama.cpp has {', '.join(CACHE_TYPES)}")
    return next((block, nbytes) for name, block, nbytes in TYPES.values() if name == cache_type.upper())


def _row(
    model: GgufFile, known: Geometry, cache_type: str, width: Callable[[Geometry, int], int]
) -> Callable[[int], int]:
    """Bytes of so many numbers in a row. llama.cpp wants every head's width to be whole blocks
    (llama_init_from_model), and so must be what an indexer keeps.
    """
    block, block_bytes = _block(cache_type)

    def nbytes(numbers: int) -> int:
        if numbers % block:
            raise _broken(model, numbers, cache_type, block)
        return numbers // block * block_bytes

    for layer in range(known.trunk):
        if width(known, layer) % block:
            raise _broken(model, width(known, layer), cache_type, block)
    return nbytes


def _broken(model: GgufFile, width: int, cache_type: str, block: int) -> GgufError:
    return GgufError(f"{model.path}: a head's width of {width} is not a multiple of {cache_type}'s {block}")
