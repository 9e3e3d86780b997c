"""Which modules are compiled, and whether the compiled modules can be used.

A module with a `.pxd` beside it is ordinary Python that is compiled as well; a `.pyx` exists only compiled.
Either all of them are used compiled, or none. `setup.py` builds them and writes `_built.py`: from which
sources, and for which Python. This module avoids pathlib and hashlib: importing them would take longer than
all of this.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType

from hbf_fuse.errors import HbfError

try:
    from _sha2 import sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256

PACKAGE = os.path.dirname(__file__)
SUFFIX = EXTENSION_SUFFIXES[0]
"""Suffix of modules that this Python can load, such as `.cpython-311-x86_64-linux-gnu.so`."""

_AGAIN = "run `pip install` again, or tools/setup"
_STALE = HbfError("the compiled modules are older than their sources", _AGAIN)
_state: dict[str, HbfError | None] = {"why_not": None}


def why_not() -> HbfError | None:
    """Why the compiled modules are not used, and the remedy; None if they are."""
    return _state["why_not"]


def is_stale() -> bool:
    """Whether the compiled modules are older than their sources."""
    return why_not() is _STALE


def decide() -> None:
    """Check what was built. If it cannot be used, imports take the sources, even beside a library."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Uncompiled)]
    _state["why_not"] = _reason()
    if why_not():
        sys.meta_path.insert(0, _Uncompiled())


def sources(package: str = PACKAGE) -> list[str]:
    """All sources of the compiled modules, as paths within the package such as `tier/link.pxd`."""
    files = set(_files(package))
    declared = {name for name in files if name.endswith((".pxd", ".pyx"))}
    # A .pxd may also stand alone, or beside a .pyx.
    return sorted(declared | {name[:-3] + "py" for name in declared} & files)


def modules(names: Iterable[str]) -> list[str]:
    """Those of `sources` that become a module each."""
    known = set(names)
    return sorted(name for name in known if not name.endswith(".pxd") and name + "x" not in known)


def digest(names: Iterable[str], package: str = PACKAGE) -> str:
    """SHA-256 over the names and the contents of sources."""
    whole = sha256()
    for name in names:
        with open(os.path.join(package, name), "rb") as file:
            content = file.read()
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return str(whole.hexdigest())


def record(made_from: str) -> str:
    """The text of `_built.py`. made_from: digest of the sources."""
    about = "Which sources the compiled modules were made from, and for which Python."
    return f'"""{about}"""\n\nDIGEST = "{made_from}"\nSUFFIX = "{SUFFIX}"\n'


def _reason() -> HbfError | None:
    if os.environ.get("HBF_UNCOMPILED"):
        return HbfError("HBF_UNCOMPILED is set", "unset it to use the compiled modules")
    try:
        with open(os.path.join(PACKAGE, "_built.py"), encoding="utf-8") as file:
            built = file.read()
    except OSError:
        return HbfError("the compiled modules were not built", f"install gcc and python3-dev, then {_AGAIN}")
    if f'SUFFIX = "{SUFFIX}"' not in built:
        return HbfError("the compiled modules were built for another Python", _AGAIN)
    names = sources()
    if f'DIGEST = "{digest(names)}"' not in built:
        return _STALE
    missing = [name for name in modules(names) if not os.path.exists(library(name))]
    return HbfError(f"the compiled module of {missing[0]} is missing", _AGAIN) if missing else None


def library(name: str, package: str = PACKAGE) -> str:
    """Path of the compiled form of a source."""
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


class _Uncompiled:
    """Finds this package's modules only as sources."""

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
