"""The folder list is the architecture: a folder imports only from folders below it."""

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import hbf_fuse

PACKAGE = Path(hbf_fuse.__file__).parent
GROUND = {"compiled", "documents", "errors", "folder", "reaper", "signals", "streams", "units"}
ROOMS = [
    {"host"},
    {"tier", "gguf", "observe"},
    {"verdict", "models"},
    {"pacing"},
    {"traces"},
    {"fs", "workload"},
    {"engine", "limits"},
    {"mount"},
    {"runs", "calibrate", "disks"},
    {"sweep", "report", "kv", "predict"},
    {"doctor", "validate"},
    {"cluster"},
    {"cli"},
]


def imports(path: Path) -> set[str]:
    found = set()
    if path.suffix != ".py":
        return set(re.findall(r"^\s*(?:from|c?import) hbf_fuse\.(\w+)", path.read_text(), re.MULTILINE))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hbf_fuse"):
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("hbf_fuse.")}
    return found - {"__version__"}


def height(room: str) -> int:
    return next(level for level, rooms in enumerate(ROOMS) if room in rooms)


def test_every_folder_is_a_known_room():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set().union(*ROOMS)


@pytest.mark.parametrize(
    "path",
    sorted(PACKAGE.rglob("*/*.p[yx][xd]")) + sorted(PACKAGE.rglob("*/*.py")),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_a_room_imports_only_from_below(path):
    room = path.relative_to(PACKAGE).parts[0]
    above = {other for other in imports(path) - GROUND - {room} if height(other) >= height(room)}
    assert not above
    if room in ("tier", "gguf"):
        # Models are read and written in folders where others may write, too.
        assert imports(path) <= {room} | ({"errors", "folder", "host"} if room == "gguf" else set())


def test_no_module_imports_itself_through_others():
    """Imports for types and inside functions count, too."""
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyx")]
    }
    imported = {name: set(imported_modules(path, modules)) - {name} for name, path in modules.items()}
    while leaves := {name for name, others in imported.items() if not others & imported.keys()}:
        imported = {name: others for name, others in imported.items() if name not in leaves}
    assert not imported, "each of these leads back to itself"


def imported_modules(path: Path, known: Collection[str]) -> Iterator[str]:
    if path.suffix != ".py":
        yield from re.findall(r"^\s*from (hbf_fuse[\w.]*) c?import", path.read_text(), re.MULTILINE)
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_the_tier_uses_no_clock_and_no_files():
    paths = list((PACKAGE / "tier").glob("*.py"))
    assert paths
    for path in paths:
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"time", "os", "open", "Path", "threading"}, path
