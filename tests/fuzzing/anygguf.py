"""Writes any GGUF, valid or not, from a description field by field."""

import math
import struct
from typing import Any

_NUMBER_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
U32, STRING, ARRAY = 4, 8, 9

MODEL: dict[str, Any] = {
    "magic": "GGUF",
    "version": 3,
    "tensor_count": None,
    "pair_count": None,
    "pairs": [
        ["general.architecture", STRING, "qwen2"],
        ["general.alignment", U32, 32],
        ["qwen2.block_count", U32, 2],
        ["qwen2.embedding_length", U32, 256],
        ["qwen2.attention.head_count", U32, 4],
        ["qwen2.attention.head_count_kv", ARRAY, [U32, None, [2, 2]]],
        ["qwen2.context_length", U32, 4096],
        ["tokenizer.ggml.tokens", ARRAY, [STRING, None, ["a", "bc", "d"]]],
    ],
    "tensors": [
        ["token_embd.weight", [256, 4], 0, 0],
        ["blk.0.attn_q.weight", [256, 2], 12, 4096],
        ["blk.1.ffn_up_exps.weight", [256, 2, 4], 14, 4384],
    ],
    "data_bytes": 8192,
}
"""A GGUF field by field. None stands for the true count or length; types are those of llama.cpp's
docs/gguf.md.
"""


def packed(model: dict[str, Any]) -> bytes:
    """The bytes of MODEL, or of a damaged version of it."""
    pairs, tensors = _listed(model.get("pairs")), _listed(model.get("tensors"))
    parts = [_text(model.get("magic"))[:4], _number("I", model.get("version"))]
    parts += [_count(model.get("tensor_count"), tensors), _count(model.get("pair_count"), pairs)]
    for pair in pairs:
        name, kind, value = _three(pair)
        parts += [_string(name), _number("I", kind), _value(kind, value)]
    for tensor in tensors:
        name, shape, kind, offset = (*_listed(tensor), None, None, None, None)[:4]
        parts += [_string(name), _number("I", len(_listed(shape)))]
        parts += [_number("Q", size) for size in _listed(shape)]
        parts += [_number("I", kind), _number("Q", offset)]
    data_bytes = model.get("data_bytes")
    return b"".join(parts) + bytes(
        min(data_bytes, 1 << 16) if type(data_bytes) is int and data_bytes > 0 else 0
    )


def _value(kind: Any, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        inner, count, members = _three(value)
        packed = b"".join(_value(inner, member) for member in _listed(members))
        return _number("I", inner) + _count(count, _listed(members)) + packed
    return _number(_NUMBER_CODES.get(kind, "I") if isinstance(kind, int) else "I", value)


def _number(code: str, value: Any) -> bytes:
    """A number from any value: too large ones are cut to size."""
    if code in "fd":
        fits = isinstance(value, int | float) and abs(value) < 3e38
        return struct.pack("<" + code, value if fits else math.inf)
    size = struct.calcsize("<" + code)
    whole = int(value) if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else 0
    return (whole % (1 << 8 * size)).to_bytes(size, "little")


def _string(value: Any) -> bytes:
    """A text with its length. A whole number in place of a text stands for a wrong length."""
    if isinstance(value, int):
        return _number("Q", value)
    return _number("Q", len(_text(value))) + _text(value)


def _count(value: Any, members: list[Any]) -> bytes:
    return _number("Q", len(members) if value is None else value)


def _text(value: Any) -> bytes:
    return value.encode(errors="replace") if isinstance(value, str) else b""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _three(value: Any) -> tuple[Any, Any, Any]:
    return (*_listed(value), None, None, None)[:3]
