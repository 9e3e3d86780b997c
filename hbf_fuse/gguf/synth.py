"""Writes synthetic models: a preset's geometry, random weights, the speed of a real model.

Quantized blocks are random bytes with sane f16 scales, so that no value is infinite or NaN.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, TokenType

from hbf_fuse.folder import Folder
from hbf_fuse.gguf.presets import Preset
from hbf_fuse.gguf.reader import GgufError

_CHUNK_BLOCKS = 1 << 16
_SCALES = {
    # type: (byte offset of an f16 in its block, value). Chosen so that weights have a mean of about
    # 0 and a deviation of about 0.02, as trained ones do.
    GGMLQuantizationType.Q4_K: ((0, 1.4e-4), (2, 1.05e-3)),
    GGMLQuantizationType.Q6_K: ((208, 1.5e-5),),
}

Progress = Callable[[int, int], None]
"""Called with bytes written and total bytes."""


@dataclass(frozen=True)
class _Plan:
    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * block_bytes


def write(preset: Preset, path: Path, seed: int = 0, progress: Progress | None = None) -> int:
    """Write a preset's model to `path` and return its size in bytes.

    The same seed gives the same bytes. Written beside the target and moved there when complete, so that
    `path` is never half written. OSError if there is no room or no permission. A link is followed. GgufError
    if `path` exists and is not a file.
    """
    folder, name = Folder.of(path)
    if folder.has(name) and not folder.is_file(name):
        raise GgufError(f"{path} exists and is not a file", "name a file to write")
    plans = list(_tensors(preset))
    with folder.appearing(name) as file:
        _write_file(preset, plans, file, seed, progress)
        return file.tell()


def size_of(preset: Preset) -> int:
    """Total bytes of a preset's tensors."""
    return sum(plan.nbytes for plan in _tensors(preset))


def _write_file(
    preset: Preset, plans: list[_Plan], file: BinaryIO, seed: int, progress: Progress | None
) -> None:
    # GGUFWriter needs a path. This one always leads to the open file, even if that is renamed.
    writer = GGUFWriter(f"/proc/self/fd/{file.fileno()}", preset.architecture)
    _add_metadata(writer, preset)
    for plan in plans:
        stored = np.float32 if plan.type == GGMLQuantizationType.F32 else np.uint8
        writer.add_tensor_info(
            plan.name, _byte_shape(plan), np.dtype(stored), plan.nbytes, raw_dtype=plan.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    total = sum(plan.nbytes for plan in plans)
    written = 0
    file.seek(0, os.SEEK_END)
    file.write(bytes(-file.tell() % writer.data_alignment))
    for index, plan in enumerate(plans):
        for chunk in _content(plan, np.random.Generator(np.random.PCG64([seed, index]))):
            file.write(chunk.data)
            written += chunk.nbytes
            if progress:
                progress(written, total)
        file.write(bytes(-file.tell() % writer.data_alignment))


def _add_metadata(writer: GGUFWriter, preset: Preset) -> None:
    writer.add_name(f"hbf-fuse synthetic {preset.name}")
    writer.add_file_type(LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_context_length(preset.context)
    writer.add_embedding_length(preset.embedding)
    writer.add_block_count(preset.layers)
    writer.add_feed_forward_length(preset.ffn)
    writer.add_head_count(preset.heads)
    writer.add_head_count_kv(preset.kv_heads)
    writer.add_rope_freq_base(preset.rope_freq_base)
    writer.add_layer_norm_rms_eps(1e-6)
    if preset.experts:
        writer.add_expert_count(preset.experts)
        writer.add_expert_used_count(preset.experts_used)
    writer.add_vocab_size(preset.vocabulary)
    if preset.words:
        _add_words(writer, preset.vocabulary)
    else:
        writer.add_tokenizer_model("no_vocab")


def _add_words(writer: GGUFWriter, count: int) -> None:
    """A vocabulary as SentencePiece has it: three control tokens, every byte, and words without meaning."""
    control = [("<unk>", TokenType.UNKNOWN), ("<s>", TokenType.CONTROL), ("</s>", TokenType.CONTROL)]
    single = [(f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)]
    known = [*control, *single]
    known += [
        (f"\N{LOWER ONE EIGHTH BLOCK}w{number:x}", TokenType.NORMAL) for number in range(count - len(known))
    ]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in known[:count]])
    writer.add_token_scores([-float(number) for number in range(count)])
    writer.add_token_types([kind for _, kind in known[:count]])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _tensors(preset: Preset) -> Iterator[_Plan]:
    """Every tensor in file order; shapes outermost first, as the writer expects."""
    f32, q4, q6 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q6_K
    wide, narrow = preset.embedding, preset.embedding // preset.heads * preset.kv_heads
    experts = (preset.experts,) if preset.experts else ()
    ffn_suffix = "_exps" if preset.experts else ""
    yield _Plan("token_embd.weight", (preset.vocabulary, wide), q4)
    yield _Plan("output_norm.weight", (wide,), f32)
    yield _Plan("output.weight", (preset.vocabulary, wide), q6)
    for layer in range(preset.layers):
        block = f"blk.{layer}."
        generous = q6 if _uses_more_bits(layer, preset.layers) else q4
        yield _Plan(block + "attn_norm.weight", (wide,), f32)
        for name, width, kind in (("q", wide, q4), ("k", narrow, q4), ("v", narrow, generous)):
            yield _Plan(f"{block}attn_{name}.weight", (width, wide), kind)
            if preset.attention_bias:
                yield _Plan(f"{block}attn_{name}.bias", (width,), f32)
        yield _Plan(block + "attn_output.weight", (wide, wide), q4)
        yield _Plan(block + "ffn_norm.weight", (wide,), f32)
        if preset.experts:
            yield _Plan(block + "ffn_gate_inp.weight", (preset.experts, wide), f32)
        yield _Plan(f"{block}ffn_gate{ffn_suffix}.weight", (*experts, preset.ffn, wide), q4)
        yield _Plan(f"{block}ffn_up{ffn_suffix}.weight", (*experts, preset.ffn, wide), q4)
        yield _Plan(f"{block}ffn_down{ffn_suffix}.weight", (*experts, wide, preset.ffn), generous)


def _uses_more_bits(layer: int, layers: int) -> bool:
    """Layers whose attn_v and ffn_down are Q6_K in Q4_K_M (use_more_bits in llama.cpp's llama-quant.cpp)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _byte_shape(plan: _Plan) -> tuple[int, ...]:
    if plan.type == GGMLQuantizationType.F32:
        return plan.shape
    block, block_bytes = GGML_QUANT_SIZES[plan.type]
    return (*plan.shape[:-1], plan.shape[-1] // block * block_bytes)


def _content(plan: _Plan, random: np.random.Generator) -> Iterator[np.ndarray]:
    if plan.type == GGMLQuantizationType.F32:
        spread = 0.02 * random.standard_normal(plan.shape, dtype=np.float32)
        yield spread + np.float32(plan.name.endswith("norm.weight"))
        return
    _, block_bytes = GGML_QUANT_SIZES[plan.type]
    blocks = plan.nbytes // block_bytes
    for start in range(0, blocks, _CHUNK_BLOCKS):
        count = min(_CHUNK_BLOCKS, blocks - start)
        chunk = np.frombuffer(bytearray(random.bytes(count * block_bytes)), np.uint8).reshape(
            count, block_bytes
        )
        for offset, scale in _SCALES[plan.type]:
            chunk[:, offset : offset + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
        yield chunk
