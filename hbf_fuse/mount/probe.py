"""Reads through a mount from outside the server, like a real reader, one read in flight.

Run as a script (see `command`), it prints "ready". For each line on stdin (see `order`) it prints a JSON
object: CLOCK_MONOTONIC when the first read began and when the last one ended, and each read's time, in ns.
The object is empty if a read failed.
"""

import contextlib
import json
import sys
from importlib.util import module_from_spec, spec_from_file_location


def command(library: str, fd: int) -> list[str]:
    """The command line that reads from fd.

    library: the compiled form of lean.py, or lean.py itself. fd: inherited by the probe, opened for reads
    past the page cache (O_DIRECT).
    """
    return [sys.executable, "-I", "-S", __file__, library, str(fd)]


def order(size: int, reads: int, start: int = 0, stride: int = 1, writes: bool = False) -> str:
    """The line that makes it read `reads` times `size` bytes: piece `start` of the file, then every
    `stride`-th piece, again and again. With `writes`, it writes them.
    """
    return f"{size} {reads} {start} {stride}{' 0 1' if writes else ''}\n"


def _main(library: str, fd: int) -> None:
    spec = spec_from_file_location("lean", library)
    if spec is None or spec.loader is None:
        sys.exit(f"{library} is not a module")
    lean = module_from_spec(spec)
    spec.loader.exec_module(lean)
    print("ready", flush=True)
    for line in sys.stdin:
        said = {}
        with contextlib.suppress(OSError):
            begin, end, times = lean.measure(fd, *map(int, line.split()))
            said = {"begin": begin, "end": end, "times": times}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
