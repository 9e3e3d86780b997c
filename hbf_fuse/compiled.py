"""Which modules are compiled, and whether what was compiled can be used.

A module with a `.pxd` beside it is ordinary Python that is compiled as well; a `.pyx` exists compiled only.
All of them are used compiled, or none. `setup.py` builds them and writes `_built.py`: from what, and for
which Python. pathlib and hashlib would take longer to import than all of this.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module, invalidate_caches
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any

try:
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256

PACKAGE = os.path.dirname(__file__)
SUFFIX = EXTENSION_SUFFIXES[0]
"""Of modules that this Python can load, such as `.cpython-311-x86_64-linux-gnu.so`."""

_AGAIN = "run `pip install` again, or tools/setup"
_state = {"why_not": ""}


def why_not() -> str:
    """Why the compiled modules are not used and what to do about it, in a line; "" if they are."""
    return _state["why_not"]


def modules(package: str = PACKAGE) -> list[str]:
    """The sources of what is compiled, as paths within the package such as `tier/link.py`, sorted."""
    files = set(_files(package))
    stems = {name.rpartition(".")[0] for name in files if name.endswith((".pxd", ".pyx"))}
    # A .pxd may also stand alone: declarations.
    return sorted(
        name
        for stem in stems
        for name in (f"{stem}.pyx", f"{stem}.py")
        if name in files and _first(name, files)
    )


def digest(package: str = PACKAGE) -> str:
    """SHA-256 over all that the compiled modules are made from."""
    declared = [name for name in _files(package) if name.endswith((".pxd", ".pyx"))]
    whole = sha256()
    for name in sorted({*declared, *modules(package)}):
        with open(os.path.join(package, name), "rb") as file:
            content = file.read()
        whole.update(f"{name} {len(content)}\n".encode())
        whole.update(content)
    return str(whole.hexdigest())


def decide() -> None:
    """Look at what was built. Unless it can be used, imports take the sources, even beside a library."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Uncompiled)]
    _state["why_not"] = _reason()
    if why_not():
        sys.meta_path.insert(0, _Uncompiled())


def _reason() -> str:
    if os.environ.get("HBF_UNCOMPILED"):
        return "HBF_UNCOMPILED is set: unset it to use the compiled modules"
    sys.modules.pop("hbf_fuse._built", None)
    invalidate_caches()
    try:
        built: Any = import_module("hbf_fuse._built")
        suffix, made_from = built.SUFFIX, built.DIGEST
    except (ImportError, AttributeError):
        return f"the compiled modules were not built: install gcc and python3-dev, then {_AGAIN}"
    if suffix != SUFFIX:
        return f"the compiled modules are another Python's ({suffix}): {_AGAIN}"
    if made_from != digest():
        return f"the compiled modules are older than their sources: {_AGAIN}"
    missing = [name for name in modules() if not os.path.exists(library(name))]
    return f"the compiled module of {missing[0]} is missing: {_AGAIN}" if missing else ""


def library(name: str, package: str = PACKAGE) -> str:
    """Where the compiled form of a source lies."""
    return os.path.join(package, name.rpartition(".")[0] + SUFFIX)


def _files(package: str) -> list[str]:
    """Every file of the package and its folders, as paths within it."""
    found = []
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(os.path.join(package, folder)) as entries:
            for entry in entries:
                if entry.name == "__pycache__":
                    continue
                if "." not in entry.name and entry.is_dir():
                    folders.append(f"{folder}{entry.name}/")
                else:
                    found.append(folder + entry.name)
    return found


def _first(name: str, files: set[str]) -> bool:
    """Whether no .pyx goes before this source."""
    return name.endswith(".pyx") or name + "x" not in files


class _Uncompiled:
    """Finds modules of this package by their sources alone."""

    def __init__(self) -> None:
        self._finders: dict[str, FileFinder] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("hbf_fuse."):
            return None
        for folder in path or ():
            finder = self._finders.get(folder)
            if finder is None:
                finder = self._finders[folder] = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES))
            if (found := finder.find_spec(name)) is not None:
                return found
            if os.path.exists(os.path.join(folder, name.rpartition(".")[2] + ".pyx")):
                raise ModuleNotFoundError(f"{name} exists compiled only; {why_not()}", name=name)
        return None
