"""Splits a GGUF as llama.cpp's llama-gguf-split does: parts by tensors, metadata in the first."""

import struct
from pathlib import Path

from gguf import GGUFReader

ALIGNMENT = 32


def split_gguf(whole: Path, folder: Path, count: int) -> list[Path]:
    """Write `NAME-00001-of-0000N.gguf` and its siblings into a folder; returns their paths in order."""
    reader = GGUFReader(whole)
    pairs = [
        b"".join(part.tobytes() for part in field.parts)
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "split."))
    ]
    each = -(-len(reader.tensors) // count)
    paths = []
    for number in range(count):
        tensors = reader.tensors[number * each : (number + 1) * each]
        told = [
            _pair("split.no", 2, struct.pack("<H", number)),
            _pair("split.count", 2, struct.pack("<H", count)),
            _pair("split.tensors.count", 5, struct.pack("<i", len(reader.tensors))),
        ]
        held = (pairs if number == 0 else []) + told
        path = folder / f"{whole.stem}-{number + 1:05d}-of-{count:05d}.gguf"
        infos, data = b"", b""
        for tensor in tensors:
            data += bytes(-len(data) % ALIGNMENT)
            name = tensor.name.encode()
            infos += struct.pack("<Q", len(name)) + name
            infos += struct.pack(
                f"<I{len(tensor.shape)}QIQ",
                len(tensor.shape),
                *map(int, tensor.shape),
                tensor.tensor_type,
                len(data),
            )
            data += tensor.data.tobytes()
        header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(held)) + b"".join(held) + infos
        path.write_bytes(header + bytes(-len(header) % ALIGNMENT) + data)
        paths.append(path)
    return paths


def _pair(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value
