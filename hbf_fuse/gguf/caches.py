"""What llama.cpp allocates for a model's caches, part by part: the sizes of llama_kv_cache and its
relatives, and of llama_memory_recurrent, by arithmetic.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hbf_fuse.gguf.architectures import Indexer, State
from hbf_fuse.gguf.fields import listed, number, per_layer
from hbf_fuse.gguf.geometry import Geometry
from hbf_fuse.gguf.reader import GgufError, GgufFile

_F32 = 4
_GLM_5_2_CONTEXT, _GLM_5_2_LAYERS = 1_048_576, 78
_CSA, _HCA = 4, 128
"""Tokens that a compressed key of DeepSeek-V4 stands for (llama-kv-cache-dsv4.cpp)."""


@dataclass(frozen=True, slots=True)
class CachePart:
    """Caches of one kind in some layers.

    kind: full, mla, indexer, compressed: these grow with every token; window, chunked, state: these do not.
    layers: that hold something. cells: of a sequence (of a state: of all). sequences: how many such caches
    there are. key_bytes, value_bytes: of all of it; a state's are its R and P, and its S. tokens_per_cell: 0
    where it does not grow.
    """

    kind: str
    layers: int
    cells: int
    sequences: int
    key_bytes: int
    value_bytes: int
    tokens_per_cell: int

    @property
    def nbytes(self) -> int:
        return self.key_bytes + self.value_bytes

    @property
    def bytes_per_token(self) -> int:
        """What another token of one sequence takes, rounded up where a cell stands for several."""
        if not self.tokens_per_cell:
            return 0
        return -(-self.nbytes // (self.cells * self.sequences * self.tokens_per_cell))


@dataclass(frozen=True, slots=True)
class Asked:
    """key_row, value_row: bytes of so many numbers in the types asked for. cells: of a sequence's full cache;
    window_room: tokens beside a window's own; parallel: sequences; unified: they share one cache.
    """

    key_row: Callable[[int], int]
    value_row: Callable[[int], int]
    cells: int
    window_room: int
    parallel: int
    unified: bool

    @property
    def sequences(self) -> int:
        return 1 if self.unified else self.parallel


def padded(count: int) -> int:
    """llama.cpp makes contexts and windows of so many cells: multiples of 256."""
    return -(-count // 256) * 256


def window_cells(geometry: Geometry, asked: Asked) -> int:
    """llama_kv_cache_iswa: the window, of every sequence that shares it, and one batch; rounded up."""
    room = geometry.window * (asked.parallel if asked.unified else 1) + asked.window_room
    return padded(min(asked.cells, room))


def parts(model: GgufFile, geometry: Geometry, asked: Asked) -> Iterator[CachePart]:
    """All caches of a model. GgufError for what its metadata lacks."""
    rules = geometry.rules
    if rules.compressed:
        yield from _compressed(model, geometry, asked)
        return
    layers = [layer for layer, attends in enumerate(geometry.attends) if attends]
    windowed = [layer for layer in layers if geometry.windowed[layer]]
    full = [layer for layer in layers if not geometry.windowed[layer]]
    yield _attention("mla" if geometry.mla else "full", geometry, full, asked, asked.cells, 1)
    indexed = rules.indexer is not None and (
        not rules.indexer.with_top_k or number(model, "attention.indexer.top_k", 0)
    )
    if rules.indexer is not None and indexed:
        yield _indexer(model, geometry, rules.indexer, asked)
    if rules.window is not None and windowed:
        yield _attention(rules.window.kind, geometry, windowed, asked, window_cells(geometry, asked), 0)
    if rules.state is not None:
        yield _state(model, geometry, rules.state, asked)


def _attention(
    kind: str, geometry: Geometry, layers: list[int], asked: Asked, cells: int, tokens_per_cell: int
) -> CachePart:
    """Keys and values of some layers; keys alone with latent attention."""
    count = cells * asked.sequences
    key_rows = [asked.key_row(geometry.key_width(layer) * geometry.kv_heads[layer]) for layer in layers]
    values = [] if geometry.mla else [_value_numbers(geometry, layer) for layer in layers]
    return CachePart(
        kind,
        sum(nbytes > 0 for nbytes in key_rows),
        cells,
        asked.sequences,
        sum(key_rows) * count,
        sum(map(asked.value_row, values)) * count,
        tokens_per_cell,
    )


def _value_numbers(geometry: Geometry, layer: int) -> int:
    if not geometry.rules.padded_values:
        return geometry.value_width(layer) * geometry.kv_heads[layer]
    return max(geometry.value_width(each) * heads for each, heads in enumerate(geometry.kv_heads))


def _indexer(model: GgufFile, geometry: Geometry, rule: Indexer, asked: Asked) -> CachePart:
    """One key, of one head, a token and layer (llama_kv_cache_dsa, llama_kv_cache_msa,
    llama_memory_hybrid_idx).
    """
    full = _indexed(model, geometry, rule)
    layers = [layer for layer, indexed in enumerate(full) if indexed]
    rows = rule.rows if any(per_layer(model, rule.rows_with, len(full), 0)) else 1
    width = number(model, "attention.indexer.key_length") * rows
    keys = [geometry.key_width(layer) if geometry.windowed[layer] else width for layer in layers]
    values = [] if geometry.mla or rule.keys_only else [geometry.value_width(layer) for layer in layers]
    count = asked.cells * asked.sequences
    return CachePart(
        "indexer",
        len(layers),
        asked.cells,
        asked.sequences,
        sum(map(asked.key_row, keys)) * count,
        sum(map(asked.value_row, values)) * count,
        1,
    )


def _indexed(model: GgufFile, geometry: Geometry, rule: Indexer) -> list[bool]:
    layers, trunk = len(geometry.heads), geometry.trunk
    if rule.layers == "attention":
        return list(geometry.attends)
    if rule.layers == "after-dense":
        dense = number(model, "leading_dense_block_count", 0)
        return [layer >= dense for layer in range(layers)]
    types = [True] * layers
    if rule.layers == "typed":
        in_file = listed(model, "attention.indexer.types", layers)
        if in_file is None and rule.types == "required":
            raise GgufError(f"{model.path} lists no {model.architecture}.attention.indexer.types")
        types = [bool(each) for each in in_file] if in_file else _types(model, rule, layers)
    attends = geometry.attends
    return [types[layer] and layer < trunk and attends[layer] for layer in range(layers)]


def _types(model: GgufFile, rule: Indexer, layers: int) -> list[bool]:
    if rule.types == "glm-5.2" and number(model, "context_length", 0) >= _GLM_5_2_CONTEXT:
        return [layer < 2 or (layer % 4 == 2 and layer < _GLM_5_2_LAYERS) for layer in range(layers)]
    return [rule.types != "none"] * layers


def _state(model: GgufFile, geometry: Geometry, rule: State, asked: Asked) -> CachePart:
    """Of each recurrent layer a row of either tensor and sequence, in f32."""
    layers = [layer for layer in range(geometry.trunk) if geometry.recurrent[layer]]
    shifted, state = _state_numbers(model, geometry, rule)
    ple = listed(model, "ple.layers", len(geometry.heads))
    extra = 0
    if ple is not None and geometry.rules.name == "qwen4exp":
        extra = (number(model, "ple.conv_kernel") - 1) * number(model, "ple.ngram_size")
        extra *= number(model, "hyper_connection.count") * geometry.embedding
    rows = _F32 * asked.parallel
    return CachePart(
        "state",
        len(layers) if shifted + state else 0,
        asked.parallel,
        1,
        (shifted * len(layers) + extra) * rows,
        state * len(layers) * rows,
        0,
    )


def _state_numbers(model: GgufFile, geometry: Geometry, state: State) -> tuple[int, int]:
    """llama_hparams::n_embd_r and n_embd_s."""
    heads = geometry.heads[0]
    if state.kind == "rwkv":
        width = number(model, "wkv.head_size")
        return number(model, "token_shift_count", 2) * geometry.embedding, geometry.embedding * width
    if state.kind == "shortconv":
        return geometry.embedding * max(0, number(model, "shortconv.l_cache") - 1), 0
    if state.kind == "linear":
        return 0, geometry.widths[0] ** 2 * heads
    kernel = number(model, "ssm.conv_kernel")
    if state.kind == "kda":
        width = number(model, "kda.head_dim")
        return 3 * (kernel - 1 if kernel else 3) * heads * width, width * width * heads
    inner, size = number(model, "ssm.inner_size"), number(model, "ssm.state_size")
    groups = number(model, "ssm.group_count") if state.groups else 0
    return max(0, kernel - 1) * (inner + 2 * groups * size), size * inner


def _compressed(model: GgufFile, geometry: Geometry, asked: Asked) -> Iterator[CachePart]:
    """DeepSeek-V4 (llama_kv_cache_dsv4): keys alone, in a window, and compressed ones of 4 and of 128
    tokens, those of 4 with an indexer; and what the compressors have in work. Never unified.
    """
    alone = Asked(asked.key_row, asked.value_row, asked.cells, asked.window_room, asked.parallel, False)
    layers = len(geometry.heads)
    ratios = listed(model, "attention.compress_ratios", layers)
    if ratios is None:
        raise GgufError(f"{model.path} lists no {model.architecture}.attention.compress_ratios")
    indexer = number(model, "attention.indexer.key_length")
    wide = geometry.key_width(0)

    def keys(kind: str, which: list[int], ratio: int, width: int | None = None) -> CachePart:
        cells = padded(max(1, -(-asked.cells // ratio))) if ratio else window_cells(geometry, alone)
        rows = [
            asked.key_row(
                width if width is not None else geometry.key_width(layer) * geometry.kv_heads[layer]
            )
            for layer in which
        ]
        nbytes = sum(rows) * cells * asked.parallel
        return CachePart(kind, len(which), cells, asked.parallel, nbytes, 0, ratio)

    def work(which: list[int], rows: int, width: int) -> CachePart:
        count = sum(layer < geometry.trunk for layer in which)
        nbytes = count * rows * width * _F32 * asked.parallel
        return CachePart("state", count, rows, asked.parallel, nbytes, nbytes, 0)

    by_ratio = {ratio: [layer for layer in range(layers) if ratios[layer] == ratio] for ratio in (_CSA, _HCA)}
    yield keys("window", list(range(layers)), 0)
    yield keys("compressed", by_ratio[_CSA], _CSA)
    yield keys("compressed", by_ratio[_HCA], _HCA)
    yield keys("indexer", by_ratio[_CSA], _CSA, indexer)
    yield work(by_ratio[_CSA], 2 * _CSA, 2 * wide)
    yield work(by_ratio[_HCA], _HCA, wide)
    yield work(by_ratio[_CSA], 2 * _CSA, 2 * indexer)
