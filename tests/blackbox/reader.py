"""Reads a served file in every way and compares it with its source; exit code 1 if they differ."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PAGE = 4096
READERS = 8
READS = 40


def direct(path: str, size: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    out = bytearray()
    with mmap.mmap(-1, 256 * PAGE) as buffer:
        while len(out) < size + 1:
            count = os.preadv(fd, [buffer], len(out))
            out += buffer[:count]
            if count % PAGE or count == 0:
                break
    os.close(fd)
    return bytes(out)


def mapped(path: str, size: int) -> bytes:
    if size == 0:
        return b""
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as view:
        return bytes(view)


def plain(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def at_random(path: str, want: bytes, seed: int) -> list[str]:
    dice = random.Random(seed)
    fd = os.open(path, os.O_RDONLY)
    wrong = []
    for _ in range(READS):
        offset, length = dice.randrange(len(want) + 100), dice.choice((1, 511, 4096, 70_001, 300_000))
        got = os.pread(fd, length, offset)
        if got != want[offset : offset + length]:
            wrong.append(f"reader {seed}: {length} bytes at {offset} differ (got {len(got)})")
    os.close(fd)
    return wrong


def main() -> int:
    path, source = sys.argv[1:3]
    with open(source, "rb") as stream:
        want = stream.read()
    wrong = []
    # Concurrent readers come first, while the page cache is cold.
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(lambda seed: at_random(path, want, seed), range(READERS)):
            wrong += found
    ways = {"O_DIRECT": direct(path, len(want)), "mmap": mapped(path, len(want)), "read": plain(path)}
    for way, got in ways.items():
        if hashlib.sha256(got).digest() != hashlib.sha256(want).digest():
            wrong.append(f"{way}: {len(got)} bytes, the source has {len(want)}, or they differ")
    size = Path(path).stat().st_size
    if size != len(want):
        wrong.append(f"st_size {size}, the source has {len(want)} bytes")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
