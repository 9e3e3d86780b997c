"""Compiles the shim, the launcher of --inject and the twin. setup.py calls it; without a C compiler there is
no memory engine.

Imports nothing of the package but the ground: setup.py runs before anything is installed.
"""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

FOLDER = Path(__file__).parent
SHIM, TWIN, INJECT = "shim.so", "twin.so", "inject"
_SOURCES = {SHIM: "shim.c", TWIN: "twin.c", INJECT: "inject.c"}
_HEADERS = ("bring.h", "reader.h", "shared.h", "twin.h")
# No fused multiply and add, as in setup.py: the twin must give the same numbers as tier/.
_FLAGS = ("-O2", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-ffp-contract=off", "-pthread")
_OF_LIBRARY = ("-fPIC", "-shared")


def digest() -> str:
    """What libraries of these sources are recognised by: 40 hex digits."""
    whole = sha256()
    for name in (*_HEADERS, *_SOURCES.values()):
        whole.update((FOLDER / name).read_bytes())
    return whole.hexdigest()[:40]


def build(folder: Path) -> str:
    """Compile them into a folder. Returns why that failed, one line, and leaves none then; or "".

    The compiler is $CC, or cc.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "cc"
    for name, source in _SOURCES.items():
        fresh = folder / f"{name}.{os.getpid()}"
        line = [*compiler.split(), *_FLAGS, *(() if name == INJECT else _OF_LIBRARY)]
        line += [f'-DHBF_DIGEST="{digest()}"', "-o", str(fresh), str(FOLDER / source), "-lm", "-ldl"]
        try:
            said = subprocess.run(line, capture_output=True, text=True, check=False)
        except OSError as error:
            why = f"{compiler}: {error.strerror}"
        else:
            why = (said.stderr.strip().splitlines() or [f"{compiler} failed"])[0] if said.returncode else ""
        if why:
            for each in _SOURCES:
                (folder / each).unlink(missing_ok=True)
            fresh.unlink(missing_ok=True)
            return why
        # Renamed into place: a program may be using the old one.
        fresh.replace(folder / name)
    return ""
