"""Metadata of models without their weights: real ones' geometry, and one or more made up for every
architecture.

python tests/geometries.py FOLDER writes them as GGUFs.
"""

import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hbf_fuse.gguf import GgufFile, architectures

Metadata = dict[str, Any]

_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10


class Longs(list[int]):
    """A list of u64."""


def packed(metadata: Metadata) -> bytes:
    """A GGUF of metadata alone: numbers as u32 and f32, lists of numbers as i32."""
    pairs = b"".join(_text(name) + _value(value) for name, value in metadata.items())
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + pairs


def write(folder: Path) -> None:
    """Every geometry as NAME.gguf."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, metadata in GEOMETRIES.items():
        (folder / f"{name}.gguf").write_bytes(packed(metadata))


@contextmanager
def files(*names: str) -> Iterator[list[Path]]:
    """Some geometries as files."""
    with tempfile.TemporaryDirectory(prefix="hbf-geometries-") as folder:
        paths = [Path(folder) / f"{name}.gguf" for name in names]
        for name, path in zip(names, paths, strict=True):
            path.write_bytes(packed(GEOMETRIES[name]))
        yield paths


def model(name: str) -> GgufFile:
    """A geometry as if read from its file."""
    return GgufFile(Path(f"{name}.gguf"), 0, 3, GEOMETRIES[name], [], 0)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list) and value and isinstance(value[0], str):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _U32, value)
    if isinstance(value, float):
        return struct.pack("<If", _F32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    kind, code = (_F32, "f") if value and isinstance(value[0], float) else (_I32, "i")
    if isinstance(value, Longs):
        kind, code = _U64, "Q"
    return struct.pack("<IIQ", _ARRAY, kind, len(value)) + struct.pack(f"<{len(value)}{code}", *value)


def described(architecture: str, **fields: Any) -> Metadata:
    """Metadata of an architecture; `x__y` is the key `x.y`, and None leaves a key out."""
    known = {"attention__layer_norm_rms_epsilon": 1e-6, "vocab_size": 128, **fields}
    return {
        "general.architecture": architecture,
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.token_type_count": 2,
        **{
            f"{architecture}.{name.replace('__', '.')}": value
            for name, value in known.items()
            if value is not None
        },
    }


LAYERS = 8

PLAIN: dict[str, Any] = {
    "block_count": LAYERS,
    "context_length": 8192,
    "embedding_length": 512,
    "feed_forward_length": 768,
    "attention__head_count": 8,
    "attention__head_count_kv": 4,
    "attention__key_length": 64,
    "attention__value_length": 64,
    "attention__layer_norm_epsilon": 1e-5,
    "attention__clamp_kqv": 8.0,
    "attention__relative_buckets_count": 32,
    "attention__q_lora_rank": 128,
    "rope__dimension_count": 64,
    "rope__dimension_sections": [16, 8, 8, 0],
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "use_parallel_residual": True,
    # Those that do not read these must not mind.
    "attention__sliding_window": 700,
    "attention__kv_lora_rank": 128,
    "attention__shared_kv_layers": 2,
    "full_attention_interval": 3,
}

EXPERTS = {
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_feed_forward_length": 256,
    "expert_shared_feed_forward_length": 256,
    "expert_chunk_feed_forward_length": 256,
    "expert_shared_count": 1,
    "expert_weights_scale": 1.0,
    "expert_weights_norm": True,
    "expert_gating_func": 2,
    "expert_group_scale": 1.0,
    "leading_dense_block_count": 1,
    "interleave_moe_layer_step": 1,
    "moe_every_n_layers": 2,
    "experts_per_group": 2,
}
SOME_HEADS = {"attention__head_count_kv": [0, 0, 4, 0, 4, 0, 0, 4]}
SSM = {
    "ssm__conv_kernel": 4,
    "ssm__inner_size": 1024,
    "ssm__state_size": 64,
    "ssm__time_step_rank": 16,
    "ssm__group_count": 8,
}
LISTED = {
    "attention__sliding_window_pattern": [1, 0, 1, 1, 0, 1, 0, 1],
    "attention__key_length_swa": 32,
    "attention__value_length_swa": 32,
}
MLA = {
    "attention__head_count_kv": 1,
    "attention__key_length": 192,
    "attention__value_length": 128,
    "attention__key_length_mla": 96,
    "attention__value_length_mla": 64,
    "attention__kv_lora_rank": 128,
}
INDEXER = {
    "attention__indexer__head_count": 4,
    "attention__indexer__key_length": 128,
    "attention__indexer__top_k": 64,
    "attention__indexer__block_size": 16,
    "attention__indexer__local_blocks": 2,
}
TYPES = {"attention__indexer__types": [1, 0, 0, 1, 0, 1, 0, 1]}
KDA = {"kda__head_dim": 64, "kda__gate_lower_bound": -5.0, "ssm__conv_kernel": 4}
HYPER = {
    "hyper_connection__count": 4,
    "hyper_connection__sinkhorn_iterations": 3,
    "hyper_connection__epsilon": 1e-6,
    "hyper_connection__magnitude": 1.0,
    "hyper_connection__low_rank": 16,
}
RWKV = {
    "wkv__head_size": 64,
    "rescale_every_n_layers": 6,
    "time_mix_extra_dim": 32,
    "time_decay_extra_dim": 64,
    "attention__decay_lora_rank": 64,
    "attention__iclr_lora_rank": 64,
    "attention__value_residual_mix_lora_rank": 32,
    "attention__gate_lora_rank": 128,
}

DSV4 = {
    "attention__head_count_kv": 1,
    "attention__output_group_count": 2,
    "attention__output_lora_rank": 32,
    "attention__compress_rope_freq_base": 1e4,
    "attention__compress_ratios": [0, 4, 128, 4, 128, 4, 0, 4],
    "hash_layer_count": 1,
    "expert_gating_func": 4,
    "swiglu_clamp_exp": 7.0,
}
MLA_SWA = {
    "attention__kv_lora_rank_swa": 64,
    "attention__key_length_swa": 128,
    "attention__value_length_swa": 64,
    "attention__key_length_mla_swa": 96,
    "attention__value_length_mla_swa": 32,
    "rope__freq_base_swa": 1e4,
}
SITU = {"attn_res__block_size": 4, "activation__situ_beta": 1.0, "activation__situ_linear_beta": 1.0}
PLE = {
    "ple__layers": [1],
    "ple__ngram_size": 3,
    "ple__heads_per_ngram": 2,
    "ple__conv_kernel": 4,
    "ple__eos_token_id": 1,
    "embedding_length_per_layer_input": 64,
    "ple__layer_multipliers": Longs([3, 5, 7]),
    "ple__head_offsets": Longs([0, 16, 32, 48]),
    "ple__head_vocab_sizes": Longs([16, 16, 16, 16]),
}

NEEDS: dict[str, dict[str, Any]] = {
    "afmoe": EXPERTS,
    "arctic": EXPERTS,
    "arwkv7": RWKV,
    "bailingmoe": EXPERTS,
    "bailingmoe2": EXPERTS,
    "bailingmoe3": EXPERTS | MLA | KDA | SOME_HEADS,
    "cohere2moe": EXPERTS,
    "dbrx": EXPERTS,
    "deepseek": EXPERTS,
    "deepseek2": EXPERTS | MLA,
    "deepseek2-ocr": EXPERTS,
    "deepseek32": EXPERTS | MLA | INDEXER,
    "deepseek4": EXPERTS | INDEXER | HYPER | DSV4,
    "dflash": {"target_layers": [1, 2, 3], "target_hidden_size": 512, **LISTED},
    "dots1": EXPERTS,
    "dots3note": EXPERTS | MLA | INDEXER | LISTED | TYPES | MLA_SWA,
    "eagle3": {"target_layers": [1, 2, 3], "target_hidden_size": 512},
    "ernie4_5-moe": EXPERTS,
    "exaone-moe": EXPERTS,
    "falcon-h1": SSM,
    "gemma4": {
        "embedding_length_per_layer_input": 64,
        **LISTED,
        "attention__sliding_window_pattern": [1, 0, 1, 1, 1, 0, 1, 0],
    },
    "gemma4-assistant": LISTED,
    "glm-dsa": EXPERTS | MLA | INDEXER,
    "glm4moe": EXPERTS,
    "glm5-next": EXPERTS | MLA | KDA | INDEXER | HYPER | SOME_HEADS | {"attention__indexer__kpool": 4},
    "gpt-oss": EXPERTS,
    "granite_swa": LISTED,
    "granitehybrid": SSM | SOME_HEADS,
    "granitemoe": EXPERTS,
    "graniteswitch": {
        "adapters__count": 1,
        "adapters__lora_rank": 8,
        "adapters__token_ids_activate": [5],
        "adapters__token_ids_substitute": [6],
    },
    "grok": EXPERTS,
    "grovemoe": EXPERTS,
    "hrm_text": {"hrm__layers_per_stack": 2, "hrm__h_cycles": 2, "hrm__l_cycles": 1},
    "hunyuan-moe": EXPERTS,
    "hy_v3": EXPERTS,
    "hy_v4": EXPERTS | MLA | INDEXER | HYPER | TYPES,
    "jamba": SSM | SOME_HEADS,
    "kimi-k3": EXPERTS | MLA | KDA | SOME_HEADS | SITU,
    "kimi-linear": EXPERTS | MLA | KDA | SOME_HEADS,
    "laguna": EXPERTS,
    "lfm2": {"shortconv__l_cache": 3, **SOME_HEADS},
    "lfm2moe": {"shortconv__l_cache": 3, **SOME_HEADS, **EXPERTS},
    "llada-moe": EXPERTS,
    "llama4": EXPERTS,
    "mamba": SSM,
    "mamba2": SSM,
    "maple": EXPERTS | LISTED | {"swiglu_clamp_exp": 7.0},
    "mellum": EXPERTS,
    "mimo2": EXPERTS | LISTED,
    "minimax-01": EXPERTS,
    "minimax-m2": EXPERTS,
    "minimax-m3": EXPERTS | INDEXER,
    "mistral4": EXPERTS | MLA,
    "nemotron_h": SSM | SOME_HEADS | {"feed_forward_length": [0, 768, 0, 0, 0, 768, 0, 0]},
    "nemotron_h_moe": SSM | EXPERTS | SOME_HEADS | {"feed_forward_length": [0, 768, 0, 0, 0, 768, 0, 0]},
    "olmoe": EXPERTS,
    "phimoe": EXPERTS,
    "plamo2": SSM | SOME_HEADS,
    "qwen2moe": EXPERTS,
    "qwen35": SSM,
    "qwen35moe": SSM | EXPERTS,
    "qwen3moe": EXPERTS,
    "qwen3next": SSM | EXPERTS,
    "qwen3vlmoe": EXPERTS,
    "qwen4exp": SSM | EXPERTS | INDEXER | HYPER,
    "rnd1": EXPERTS,
    "rwkv6": RWKV,
    "rwkv6qwen2": RWKV,
    "rwkv7": RWKV,
    "smallthinker": EXPERTS,
    "spark2_5": LISTED,
    "step35": EXPERTS | LISTED,
}


def made(architecture: str, **changed: Any) -> Metadata:
    """A small model of an architecture, with all that llama.cpp needs to load it, or with something
    changed.
    """
    known = described(architecture, **PLAIN | NEEDS.get(architecture, {}) | changed)
    if architecture == "apertus":
        known |= {f"xielu.{name}": [0.5] * LAYERS for name in ("alpha_n", "alpha_p", "beta", "eps")}
    return known


NO_WINDOW: dict[str, Any] = {"attention__sliding_window": None}
VARIANTS: dict[str, Metadata] = {
    "no-window-gemma2": made("gemma2", **NO_WINDOW),
    "no-window-gemma3": made("gemma3", **NO_WINDOW),
    "no-window-llama4": made("llama4", **NO_WINDOW),
    "no-window-smallthinker": made("smallthinker", **NO_WINDOW),
    "no-window-olmo2": made("olmo2", **NO_WINDOW),
    "no-window-lfm2": made("lfm2", **NO_WINDOW),
    "no-window-dflash": made("dflash", **NO_WINDOW),
    "window-0-llama4": made("llama4", attention__sliding_window=0),
    "window-0-gemma3": made("gemma3", attention__sliding_window=0),
    "pattern-3-gemma3": made("gemma3", attention__sliding_window_pattern=3),
    "pattern-0-gpt-oss": made("gpt-oss", attention__sliding_window_pattern=0),
    "pattern-3-laguna": made("laguna", attention__sliding_window_pattern=3),
    "pattern-listed-cohere2": made("cohere2", **LISTED),
    "pattern-short-gemma2": made("gemma2", attention__sliding_window_pattern=[1, 0, 1]),
    "64-layers-exaone4": made("exaone4", block_count=64, **NO_WINDOW),
    "64-layers-exaone4-window": made("exaone4", block_count=64),
    "30-layers-gemma3n": made("gemma3n", block_count=30),
    "not-shared-gemma4": made("gemma4", attention__shared_kv_layers=None),
    "not-causal-gemma3": made("gemma3", attention__causal=False),
    "heads-listed-grok": made("grok", attention__head_count_kv=[4, 2, 4, 2, 4, 2, 4, 8]),
    "heads-listed-llama": made("llama", attention__head_count_kv=[4, 2, 0, 2, 4, 2, 4, 8]),
    "not-mla-deepseek2": made("deepseek2", attention__key_length_mla=None, attention__value_length_mla=None),
    "listed-qwen3next": made("qwen3next", attention__recurrent_layers=[1, 0, 1, 1, 0, 1, 1, 1]),
    "default-qwen3next": made("qwen3next", full_attention_interval=None),
    "default-minimax-01": made("minimax-01", full_attention_interval=None),
    "ple-qwen4exp": made("qwen4exp", **PLE),
    "ratios-qwen4exp": made("qwen4exp", attention__compress_ratios=[0, 0, 0, 4, 0, 0, 0, 4]),
    "typed-glm-dsa": made("glm-dsa", **TYPES),
    "long-glm-dsa": made("glm-dsa", block_count=79, nextn_predict_layers=1, context_length=1048576),
    "typed-glm5-next": made("glm5-next", **TYPES),
    "no-top-k-hy_v4": made("hy_v4", attention__indexer__top_k=None),
    "hyper-dflash": made("dflash", **EXPERTS | HYPER | DSV4 | {"attention__compress_ratios": None}),
    "loops-nanbeige": made("nanbeige", num_loops=3),
    "token-shift-rwkv6": made("rwkv6", token_shift_count=1),
    **{
        f"nextn-{name}": made(name, nextn_predict_layers=1)
        for name in (
            "glm4moe", "deepseek2", "deepseek32", "deepseek4", "qwen3next", "qwen35moe", "minimax-m3",
            "kimi-linear", "step35", "glm5-next", "nemotron_h_moe", "jamba", "hy_v3", "qwen3", "gemma3",
            "bailingmoe3", "mimo2", "lfm2",
        )
    },
}  # fmt: skip

NEXT = {
    "context_length": 262_144,
    "block_count": 48,
    "embedding_length": 2048,
    "attention__head_count": 16,
    "attention__head_count_kv": 2,
    "attention__key_length": 256,
    "attention__value_length": 256,
    "rope__dimension_count": 64,
    "expert_count": 512,
    "expert_used_count": 10,
    "expert_feed_forward_length": 512,
    "expert_shared_feed_forward_length": 512,
    "ssm__conv_kernel": 4,
    "ssm__inner_size": 4096,
    "ssm__state_size": 128,
    "ssm__time_step_rank": 32,
    "ssm__group_count": 16,
}


def heads(count: int, kv: Any, width: int | None = None) -> dict[str, Any]:
    """Of queries, of keys and values, and their width where it does not follow."""
    known = {"attention__head_count": count, "attention__head_count_kv": kv}
    return known | {"attention__key_length": width, "attention__value_length": width}


def size(layers: int, embedding: int, ff: Any, context: int = 131_072) -> dict[str, Any]:
    known = {"block_count": layers, "embedding_length": embedding, "feed_forward_length": ff}
    return known | {"context_length": context}


_DECI = [8] * 44 + [4] + [2] * 6 + [1] * 3 + [0] * 26
_OPENELM = {"count": [12] * 5 + [16] * 7 + [20] * 4, "kv": [3] * 5 + [4] * 7 + [5] * 4}

REAL: dict[str, Metadata] = {
    "qwen3-0.6b": described("qwen3", **size(28, 1024, 3072), **heads(16, 8, 128)),
    "gemma-7b": described("gemma", **size(28, 3072, 24_576), **heads(16, 16, 256)),
    "phi3-mini-4k": described(
        "phi3",
        **size(32, 3072, 8192, 4096),
        **heads(32, 32),
        rope__dimension_count=96,
        rope__scaling__original_context_length=4096,
        attention__sliding_window=2047,
    ),
    "gemma2-9b-old": described("gemma2", **size(42, 3584, 14_336), **heads(16, 8, 256)),
    "gemma3-27b": described(
        "gemma3", **size(62, 5376, 21_504), **heads(32, 16, 128), attention__sliding_window=1024
    ),
    "gpt-oss-20b": described(
        "gpt-oss",
        **size(24, 2880, 2880),
        **heads(64, 8, 64),
        attention__sliding_window=128,
        expert_count=32,
        expert_used_count=4,
        expert_feed_forward_length=2880,
    ),
    "qwen3next-80b-old": described("qwen3next", **NEXT),
    "qwen3next-80b": described("qwen3next", **NEXT, full_attention_interval=4),
    "deepseek-v3-mla": described(
        "deepseek2",
        **size(61, 7168, 18_432)
        | EXPERTS
        | MLA
        | {
            "attention__head_count": 128,
            "attention__key_length": 576,
            "attention__value_length": 512,
            "attention__key_length_mla": 192,
            "attention__value_length_mla": 128,
            "attention__q_lora_rank": 1536,
            "attention__kv_lora_rank": 512,
            "rope__dimension_count": 64,
        },
    ),
    "lfm2-1.2b": described(
        "lfm2",
        **size(16, 2048, 8192),
        **heads(32, [0, 0, 8, 0, 0, 8, 0, 0, 8, 0, 8, 0, 8, 0, 8, 0]),
        shortconv__l_cache=3,
    ),
    "nemotron-51b-deci": described(
        "deci",
        **size(80, 8192, [28_672] * 80),
        **heads(0, _DECI) | {"attention__head_count": [64 if kv else 0 for kv in _DECI]},
        rope__dimension_count=128,
    ),
    "openelm-270m": described(
        "openelm",
        **size(16, 1280, [768 + 256 * layer for layer in range(16)]),
        **heads(0, _OPENELM["kv"], 64) | {"attention__head_count": _OPENELM["count"]},
        rope__dimension_count=64,
    ),
    "mamba-130m": described(
        "mamba",
        **size(24, 768, 0),
        attention__head_count=0,
        ssm__conv_kernel=4,
        ssm__inner_size=1536,
        ssm__state_size=16,
        ssm__time_step_rank=48,
    ),
    "rwkv7-0.1b": described(
        "rwkv7", **size(12, 768, 3072), **RWKV, attention__head_count=0, attention__layer_norm_epsilon=1e-5
    ),
    "jamba-mini": described(
        "jamba",
        **size(32, 4096, 14_336),
        **heads(32, [8 if layer % 8 == 4 else 0 for layer in range(32)]),
        ssm__conv_kernel=4,
        ssm__inner_size=8192,
        ssm__state_size=16,
        ssm__time_step_rank=256,
        expert_count=16,
        expert_used_count=2,
    ),
    "bert-bge-small": described(
        "bert", **size(12, 384, 1536, 512), attention__head_count=12, attention__layer_norm_epsilon=1e-12
    ),
    "t5-small": described(
        "t5", **size(6, 512, 1024, 512), **heads(6, None, 64), attention__relative_buckets_count=32
    ),
    "falcon-h1-0.5b": described(
        "falcon-h1",
        **size(36, 1024, 2048),
        **heads(8, 2, 64),
        ssm__conv_kernel=4,
        ssm__inner_size=1536,
        ssm__state_size=128,
        ssm__time_step_rank=24,
        ssm__group_count=1,
    ),
    "glm45-air-nextn": described(
        "glm4moe",
        **size(47, 4096, 10_944),
        **heads(96, 8, 128),
        **EXPERTS,
        rope__dimension_count=64,
        nextn_predict_layers=1,
    ),
}
"""Of public models, from their own config.json: what tests/data/kv-expected.csv is about."""

GEOMETRIES: dict[str, Metadata] = {
    **REAL,
    **{f"made-{name}": made(name) for name in architectures.table().names()},
    **VARIANTS,
}

if __name__ == "__main__":
    write(Path(sys.argv[1]))
