"""Reads through a mount from outside the server, as lean readers do, one read in flight. Run as a script
(see `command`): it says "ready", waits for a line on stdin, and prints a JSON object: CLOCK_MONOTONIC at
begin and end, and each read's time, in ns. Nothing if a read failed.
"""

import contextlib
import json
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location


def command(library: str, fd: int, size: int, reads: int, start: int = 0, stride: int = 1) -> list[str]:
    """The command line that reads `reads` times `size` bytes: piece `start` of the file, then by `stride`
    pieces on, round and round.

    library: the compiled form of lean.py, or lean.py itself. fd: to be inherited, opened to be read past the
    page cache (O_DIRECT).
    """
    numbers = (fd, size, reads, start, stride)
    return [sys.executable, "-I", "-S", __file__, library, *map(str, numbers)]


def _main(library: str, *numbers: int) -> None:
    spec = spec_from_file_location("lean", library)
    if spec is None or spec.loader is None:
        sys.exit(f"{library} is not a module")
    lean = module_from_spec(spec)
    spec.loader.exec_module(lean)
    print("ready", flush=True)
    sys.stdin.readline()
    with contextlib.suppress(OSError):
        begin = time.monotonic_ns()
        times = lean.measure(*numbers)
        print(json.dumps({"begin": begin, "end": time.monotonic_ns(), "times": times}))


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
