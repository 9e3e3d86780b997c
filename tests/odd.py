"""Small GGUFs as people have them: whole models, what lies beside models, and damaged ones."""

import random
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import geometries


class Tensor(NamedTuple):
    """shape: innermost dimension first. kind: ggml's number."""

    shape: tuple[int, ...]
    kind: int
    data: bytes


LLAMA = geometries.made(
    "llama",
    vocab_size=128,
    block_count=1,
    context_length=512,
    embedding_length=64,
    feed_forward_length=128,
    attention__head_count=2,
)


def weights(count: int = 8, seed: int = 1) -> dict[str, Tensor]:
    """So many tensors of 16 KiB."""
    data = random.Random(seed)
    return {f"blk.{n}.ffn_up.weight": Tensor((64, 64), 0, data.randbytes(1 << 14)) for n in range(count)}


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None, version: int = 3) -> bytes:
    """A GGUF with these tensors in this order."""
    alignment = metadata.get("general.alignment", 32)
    tensors = tensors or {}
    pairs = geometries.packed(dict(metadata))[24:]
    infos, data = b"", b""
    for name, (shape, kind, content) in tensors.items():
        infos += struct.pack("<Q", len(name)) + name.encode()
        infos += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += content + bytes(-len(content) % alignment)
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata)) + pairs + infos
    return header + bytes(-len(header) % alignment) + data


WHOLE = gguf(LLAMA, weights())
SMALL = {"x": Tensor((64, 64), 0, bytes(1 << 14))}


def typed(kind: int, nbytes: int) -> bytes:
    """A model with a tensor of any type between two of known ones."""
    first, last = weights(1)["blk.0.ffn_up.weight"], weights(1, seed=2)["blk.0.ffn_up.weight"]
    return gguf(LLAMA, {"first": first, "odd": Tensor((256,), kind, bytes(nbytes)), "last": last})


FILES: dict[str, tuple[bytes, str]] = {
    "mmproj.gguf": (
        gguf({"general.architecture": "clip", "general.type": "mmproj"}, SMALL),
        "is an mmproj, the encoder beside a model",
    ),
    "clip.gguf": (gguf({"general.architecture": "clip"}, SMALL), "is an mmproj"),
    "lora.gguf": (gguf({**LLAMA, "general.type": "adapter"}, SMALL), "is an adapter (LoRA)"),
    "lora-old.gguf": (gguf({**LLAMA, "adapter.type": "lora"}, SMALL), "is an adapter (LoRA)"),
    "imatrix.gguf": (gguf({"general.type": "imatrix"}, SMALL), "is an imatrix"),
    "vocabulary.gguf": (
        gguf({**LLAMA, "tokenizer.ggml.tokens": ["a", "b"]}),
        "is a vocabulary without weights",
    ),
    "metadata.gguf": (gguf(LLAMA), "is metadata without weights"),
    "second.gguf": (gguf({**LLAMA, "split.no": 1, "split.count": 3}, SMALL), "is part 2 of 3"),
    "first.gguf": (
        gguf({**LLAMA, "split.no": 0, "split.count": 3, "split.tensors.count": 9}, SMALL),
        "is part 1 of 3",
    ),
    "big.gguf": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(64), "is a big-endian GGUF"),
    "v1.gguf": (b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(32), "is a GGUF of version 1"),
    "v4.gguf": (gguf(LLAMA, weights(), version=4), "is a GGUF of version 4"),
    "cut.gguf": (WHOLE[:-1], "is cut short: tensor"),
    "loading.gguf.part": (WHOLE[:9000], "is still being downloaded, as its name says (.part)"),
    "loaded.gguf.incomplete": (WHOLE, "is still being downloaded, as its name says (.incomplete)"),
    "allocated.gguf": (WHOLE[:50_000].ljust(1 << 18, b"\0"), "ends in zeros: perhaps it is still being"),
    "align8.gguf": (gguf({**LLAMA, "general.alignment": 8}, weights()), "aligns its tensors to 8 bytes"),
    "align48.gguf": (gguf({**LLAMA, "general.alignment": 48}, weights()), "aligns its tensors to 48 bytes"),
    "pointer.gguf": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4368439584\n",
        "is a pointer of Git LFS",
    ),
    "text.gguf": (b"Once upon a time there was no model.", "is not a GGUF"),
}
"""What stands in each file, and what is told of it."""


def write(folder: Path, *names: str) -> None:
    """Some of FILES; all without names."""
    for name in names or FILES:
        (folder / name).write_bytes(FILES[name][0])
