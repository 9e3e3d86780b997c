"""Compiles the shim and the twin. setup.py calls it; without a C compiler there is no memory engine.

Imports nothing of the package but the ground: setup.py runs before anything is installed.
"""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent
SHIM, TWIN = "shim.so", "twin.so"
_SOURCES = ("reader.h", "shared.h", "shim.c", "twin.c", "twin.h")
# No fused multiply and add, as in setup.py: the twin must give the same numbers as tier/.
_FLAGS = ("-O2", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-ffp-contract=off", "-fPIC", "-shared")


def digest() -> str:
    """What libraries of these sources are recognised by: 40 hex digits."""
    whole = sha256()
    for name in _SOURCES:
        whole.update((FOLDER / name).read_bytes())
    return whole.hexdigest()[:40]


def build(folder: Path) -> str:
    """Compile both into a folder. Returns why that failed, one line, and leaves neither then; or "".

    The compiler is $CC, or cc.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "cc"
    for name in (SHIM, TWIN):
        source = str(FOLDER / name.replace(".so", ".c"))
        fresh = folder / f"{name}.{os.getpid()}"
        line = [*compiler.split(), *_FLAGS, f'-DHBF_DIGEST="{digest()}"', "-o", str(fresh), source]
        try:
            said = subprocess.run(
                [*line, "-lm", "-ldl", "-pthread"], capture_output=True, text=True, check=False
            )
        except OSError as error:
            why = f"{compiler}: {error.strerror}"
        else:
            why = (said.stderr.strip().splitlines() or [f"{compiler} failed"])[0] if said.returncode else ""
        if why:
            for each in (SHIM, TWIN):
                (folder / each).unlink(missing_ok=True)
            fresh.unlink(missing_ok=True)
            return why
        # Renamed into place: a program may be using the old one.
        fresh.replace(folder / name)
    return ""
