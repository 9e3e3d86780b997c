"""Random operations on one file, compared with the same operations on bytes in memory, as fsx does.

python tests/fsx.py PATH --operations 100000 --seed 1
"""

import argparse
import mmap
import os
import random
import sys
from contextlib import suppress
from pathlib import Path

PAGE = mmap.PAGESIZE
LONGEST = 1 << 16
"""The most bytes that one operation touches, truncation aside."""

WHOLE_EVERY = 100
"""After so many operations the whole file is compared."""


def run(path: Path, seed: int, operations: int, most_bytes: int = 1 << 20, direct: bool = False) -> None:
    """Do so many operations on a new file at `path`, which stays there.

    direct: reads and writes are O_DIRECT, and aligned to pages. Appending and mapping go through the page
    cache in any case. Raises AssertionError, which names the seed and the operation, if a byte, a size or an
    answer is wrong.
    """
    file = _File(path, seed, most_bytes, direct)
    number = 0
    try:
        file.open(os.O_CREAT | os.O_TRUNC)
        for number in range(1, operations + 1):
            file.step()
            if number % WHOLE_EVERY == 0:
                file.compare_whole()
        file.reopen()
        file.compare_whole()
    except (AssertionError, OSError, ValueError) as error:
        raise AssertionError(f"seed {seed}, operation {number} ({file.doing}): {error}") from error
    finally:
        with suppress(OSError):
            file.close()


class _File:
    """The file, and in `shadow` what it must hold. doing: the operation that is under way, for messages."""

    def __init__(self, path: Path, seed: int, most_bytes: int, direct: bool) -> None:
        self.path = path
        self.draw = random.Random(seed)
        self.unit = PAGE if direct else 1
        self.flags = os.O_RDWR | (os.O_DIRECT if direct else 0)
        self.most = most_bytes // self.unit * self.unit
        if self.most <= 0:
            raise ValueError(f"{most_bytes} bytes are too few")
        self.shadow = bytearray()
        # Aligned, as O_DIRECT wants it. Longer than the file, so that reads of the whole see its end.
        self.buffer = memoryview(mmap.mmap(-1, -(-self.most // PAGE) * PAGE + PAGE))
        self.fd = self.end = -1
        self.doing = "open"
        self.steps = {
            self.write: 30,
            self.read: 30,
            self.map: 12,
            self.truncate: 8,
            self.append: 8,
            self.allocate: 6,
            self.reopen: 3,
            self.sync: 3,
        }

    def open(self, more_flags: int = 0) -> None:
        """Two handles: one to read and write anywhere, and one that appends and is open all the time."""
        self.fd = os.open(self.path, self.flags | more_flags, 0o600)
        self.end = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        handles = (self.fd, self.end)
        self.fd = self.end = -1
        for fd in handles:
            if fd >= 0:
                os.close(fd)

    def step(self) -> None:
        (act,) = self.draw.choices(list(self.steps), list(self.steps.values()))
        self.doing = act.__name__
        act()
        if (size := os.fstat(self.fd).st_size) != len(self.shadow):
            raise AssertionError(f"the file has {size} bytes, not {len(self.shadow)}")

    def write(self) -> None:
        at, length = self._span()
        data = self.draw.randbytes(length)
        self.doing = f"write of {length} at {at}"
        self.buffer[:length] = data
        self._all_of(length, os.pwritev(self.fd, [self.buffer[:length]], at))
        self._put(at, data)

    def read(self) -> None:
        at, length = self._span()
        self.doing = f"read of {length} at {at}"
        count = os.preadv(self.fd, [self.buffer[:length]], at)
        self._compare(bytes(self.buffer[:count]), at, length)

    def map(self) -> None:
        """Compare what a mapping shows, change some of it, and msync."""
        if not self.shadow:
            return
        at = self.draw.randrange(len(self.shadow))
        length = min(self._length(), len(self.shadow) - at)
        begin = at - at % mmap.ALLOCATIONGRANULARITY
        self.doing = f"mapping of {length} at {at}"
        data = self.draw.randbytes(length)
        with mmap.mmap(self.fd, at + length - begin, offset=begin) as view:
            self._compare(view[:], begin, len(view))
            view[at - begin :] = data
            view.flush()
        self._put(at, data)

    def truncate(self) -> None:
        size = self.draw.randrange(self.most + 1)
        self.doing = f"truncate from {len(self.shadow)} to {size}"
        os.truncate(self.fd if self.draw.random() < 0.5 else self.path, size)
        del self.shadow[size:]
        self._grow(size)

    def append(self) -> None:
        length = min(self._length(), self.most - len(self.shadow))
        data = self.draw.randbytes(length)
        self.doing = f"append of {length} at {len(self.shadow)}"
        self._all_of(length, os.write(self.end, data))
        self.shadow += data

    def allocate(self) -> None:
        at, length = self._span()
        self.doing = f"fallocate of {length} at {at}"
        os.posix_fallocate(self.fd, at, length)
        self._grow(at + length)

    def sync(self) -> None:
        (os.fsync if self.draw.random() < 0.5 else os.fdatasync)(self.fd)

    def reopen(self) -> None:
        self.doing = "reopen"
        self.close()
        self.open()

    def compare_whole(self) -> None:
        self.doing += ", then a read of everything"
        count = os.preadv(self.fd, [self.buffer], 0)
        self._compare(bytes(self.buffer[:count]), 0, len(self.buffer))

    def _length(self) -> int:
        """Lengths of a few bytes, of less than a page, and long ones, all often."""
        return self.draw.randint(1, self.draw.choice((16, PAGE, LONGEST)))

    def _span(self) -> tuple[int, int]:
        """An offset and a length within the most that the file may have, often around its end."""
        near = min(self.most, len(self.shadow) + PAGE)
        at = self.draw.randrange(near if self.draw.random() < 0.5 else self.most)
        at -= at % self.unit
        length = -(-self._length() // self.unit) * self.unit
        return at, min(length, self.most - at)

    def _put(self, at: int, data: bytes) -> None:
        self._grow(at)
        self.shadow[at : at + len(data)] = data

    def _grow(self, size: int) -> None:
        self.shadow.extend(bytes(max(0, size - len(self.shadow))))

    def _compare(self, found: bytes, at: int, length: int) -> None:
        expected = bytes(self.shadow[at : at + length])
        if len(found) != len(expected):
            raise AssertionError(f"{len(found)} bytes came from {at}, not {len(expected)}")
        if found != expected:
            place = next(place for place, byte in enumerate(found) if byte != expected[place])
            raise AssertionError(f"byte {at + place} is {found[place]}, not {expected[place]}")

    @staticmethod
    def _all_of(length: int, written: int) -> None:
        if written != length:
            raise AssertionError(f"{written} bytes of {length} were written")


def main() -> None:
    parser = argparse.ArgumentParser(description="Random operations on one file, compared with memory.")
    parser.add_argument("path", type=Path, help="the file; it is made anew")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most-bytes", type=int, default=1 << 20)
    parser.add_argument("--direct", action="store_true", help="read and write with O_DIRECT")
    given = parser.parse_args()
    try:
        run(given.path, given.seed, given.operations, given.most_bytes, given.direct)
    except AssertionError as error:
        sys.exit(str(error))
    print(f"{given.operations} operations with seed {given.seed}: all bytes are right")


if __name__ == "__main__":
    main()
