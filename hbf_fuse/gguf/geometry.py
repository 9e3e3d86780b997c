"""What a model's layers are, as llama.cpp's loader (llama_model_base::load_hparams and load_arch_hparams)
sees them: heads, widths, windows, recurrent layers, and which of them have keys and values.
"""

from dataclasses import dataclass

from hbf_fuse.gguf import architectures, kinds
from hbf_fuse.gguf.architectures import Architecture, Window
from hbf_fuse.gguf.fields import listed, number, per_layer
from hbf_fuse.gguf.reader import GgufError, GgufFile

_HEADS, _KV_HEADS = "attention.head_count", "attention.head_count_kv"
_WINDOW, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"

MAX_LAYERS = 1024
"""Twice what llama.cpp takes (LLAMA_MAX_LAYERS)."""


@dataclass(frozen=True)
class Geometry:
    """Entries of lists are of layers; the last ones, from `trunk` on, predict further tokens.

    heads: of queries; kv_heads: of keys and values. widths: of a key and of a value, in numbers;
    window_widths: the same in layers with a window. window: tokens, 0 for none. attends: which layers have
    keys and values of their own.
    """

    rules: Architecture
    trunk: int
    embedding: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    widths: tuple[int, int]
    window_widths: tuple[int, int]
    window: int
    windowed: tuple[bool, ...]
    recurrent: tuple[bool, ...]
    attends: tuple[bool, ...]
    mla: bool

    def key_width(self, layer: int) -> int:
        return (self.window_widths if self.windowed[layer] else self.widths)[0]

    def value_width(self, layer: int) -> int:
        return (self.window_widths if self.windowed[layer] else self.widths)[1]


def rules_of(model: GgufFile) -> Architecture:
    """The rules for a model's architecture. GgufError for a file that is no language model, or not its first
    part, and for an unknown architecture whose keys say that it keeps more than keys and values.
    """
    kinds.require_model(model, weights=False)
    if "general.architecture" not in model.metadata:
        raise GgufError(f"{model.path} names no architecture", "name a language model's GGUF")
    table = architectures.table()
    rules = table.of(model.architecture)
    if not rules.known:
        for hint in table.hints:
            if any(key.startswith(f"{model.architecture}.{hint}") for key in model.metadata):
                raise GgufError(
                    f"{model.path}: the architecture {model.architecture} is unknown here, "
                    f"and its {hint} says that keys and values are not all "
                    f"(known: those of {table.version})",
                    "a newer hbf-fuse may know it",
                )
    return rules


def of(model: GgufFile) -> Geometry:
    """A model's layers. GgufError as rules_of, and where the metadata lacks something or contradicts
    itself.
    """
    rules = rules_of(model)
    layers = number(model, "block_count")
    nextn = _nextn(model, rules, layers)
    if not 0 < layers <= MAX_LAYERS or nextn > layers:
        raise GgufError(f"{model.path} has {layers} layers, {nextn} of them for predicting further tokens")
    embedding = number(model, "embedding_length")
    only_state = rules.state is not None and rules.state.layers == "all"
    heads = per_layer(model, _HEADS, layers, 0 if only_state else None)
    kv_heads = heads if model.field(_KV_HEADS) is None else per_layer(model, _KV_HEADS, layers)
    widths = _widths(model, rules, embedding, heads[0])
    window_widths = (
        number(model, "attention.key_length_swa", widths[0]),
        number(model, "attention.value_length_swa", widths[1]),
    )
    trunk = layers - nextn
    recurrent = _recurrent(model, rules, kv_heads, trunk)
    if rules.loops:
        loops = max(1, number(model, "num_loops", 1))
        if loops * layers > MAX_LAYERS:
            raise GgufError(f"{model.path} loops {loops} times through {layers} layers")
        heads, kv_heads = (each[:trunk] * loops if loops > 1 else each for each in (heads, kv_heads))
        trunk = len(heads) - nextn
    elif rules.router:
        heads, kv_heads = [*heads[:trunk], 1], [*kv_heads[:trunk], 1]
    recurrent += [False] * (len(heads) - len(recurrent))
    window, windowed = _window(model, rules.window, recurrent, trunk)
    return Geometry(
        rules=rules,
        trunk=trunk,
        embedding=embedding,
        heads=tuple(heads),
        kv_heads=tuple(kv_heads),
        widths=widths,
        window_widths=window_widths,
        window=window,
        windowed=tuple(windowed),
        recurrent=tuple(recurrent),
        attends=tuple(_attends(model, rules, recurrent, trunk)),
        mla=rules.mla and bool(_mla(model)),
    )


def _nextn(model: GgufFile, rules: Architecture, layers: int) -> int:
    nextn = number(model, "nextn_predict_layers", 0)
    if rules.compressed and nextn:
        # llama_model_deepseek4: they count only where their tensors are in this file.
        probe = f"blk.{layers - nextn}.nextn.eh_proj.weight"
        return nextn if any(tensor.name == probe for tensor in model.tensors) else 0
    return nextn


def _mla(model: GgufFile) -> int:
    return number(model, "attention.key_length_mla", 0) * number(model, "attention.value_length_mla", 0)


def _widths(model: GgufFile, rules: Architecture, embedding: int, heads: int) -> tuple[int, int]:
    """llama.cpp reads them only where the first layer has heads."""
    if not heads and not rules.own_widths:
        return 0, 0
    width = embedding // heads if heads else 0
    return number(model, "attention.key_length", width), number(model, "attention.value_length", width)


def _recurrent(model: GgufFile, rules: Architecture, kv_heads: list[int], trunk: int) -> list[bool]:
    state, layers = rules.state, len(kv_heads)
    if state is None:
        return [False] * layers
    headless = [not count and layer < trunk for layer, count in enumerate(kv_heads)]
    if state.layers == "headless":
        return headless
    if state.layers == "headless-no-ff":
        ff = per_layer(model, "feed_forward_length", layers, 0)
        return [none and not wide for none, wide in zip(headless, ff, strict=True)]
    if state.layers == "interval":
        if model.field("attention.recurrent_layers") is not None:
            return [bool(each) for each in per_layer(model, "attention.recurrent_layers", layers)]
        interval = max(1, number(model, "full_attention_interval", state.interval))
        return [layer < trunk and (layer + 1) % interval != 0 for layer in range(layers)]
    return [layer < trunk for layer in range(layers)]


def _attends(model: GgufFile, rules: Architecture, recurrent: list[bool], trunk: int) -> list[bool]:
    layers = len(recurrent)
    own = layers if rules.own_layers is None else rules.own_layers
    if rules.shares:
        own = layers - number(model, "attention.shared_kv_layers", 0)
    if not rules.nextn_cached and not rules.router and trunk:
        own = min(own, trunk)
    if rules.state is not None and rules.state.layers == "all":
        own = 0
    beside = rules.state is not None and rules.state.layers == "beside"
    attends = [layer < own and (beside or not recurrent[layer]) for layer in range(layers)]
    if rules.state is not None and rules.state.layers == "headless-no-ff":
        ff = per_layer(model, "feed_forward_length", layers, 0)
        attends = [each and not wide for each, wide in zip(attends, ff, strict=True)]
    return attends


def _window(
    model: GgufFile, rule: Window | None, recurrent: list[bool], trunk: int
) -> tuple[int, list[bool]]:
    """A window's tokens and the layers that have it."""
    layers = len(recurrent)
    none = 0, [False] * layers
    if rule is None or (rule.block_count is not None and rule.block_count != trunk):
        return none
    named = model.field(_WINDOW)
    every = bool(rule.all_with and number(model, rule.all_with, 0))
    if (rule.when == "named" and not named and not every) or (rule.when == "unless-zero" and named == 0):
        return none
    size = rule.size if rule.fixed and rule.size else number(model, _WINDOW, rule.size)
    if rule.layers == "all" or every:
        return size, [True] * layers
    if rule.layers == "trunk":
        return size, [layer < trunk and not recurrent[layer] for layer in range(layers)]
    in_file = listed(model, _PATTERN, layers)
    if in_file is not None:
        return size, [bool(each) for each in in_file]
    if rule.layers == "listed":
        raise GgufError(
            f"{model.path} lists no {model.architecture}.{_PATTERN}, which its architecture needs"
        )
    period = number(model, _PATTERN, rule.full_every)
    full = 0 if rule.full_first else period - 1
    return size, [layer < trunk and (not period or layer % period != full) for layer in range(layers)]
