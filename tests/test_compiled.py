"""Compiled and uncompiled give the same numbers; behaviour if compiling is not possible."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import arrivals
import pytest

import hbf_fuse
from hbf_fuse import compiled
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill
from hbf_fuse.tier import expect

ROOT = Path(hbf_fuse.__file__).parent.parent
DATA = Path(__file__).parent / "data"
IN_TREE = (ROOT / "setup.py").exists()

needs_compiled = pytest.mark.skipif(bool(compiled.why_not()), reason=str(compiled.why_not()))
needs_tree = pytest.mark.skipif(not IN_TREE, reason="not run from the source tree")


def run(code: str, package_in: Path = ROOT, **environment: str) -> str:
    """The output of a fresh interpreter that imports the package from a folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "HBF_UNCOMPILED"}
    line = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(package_in)!r})\n{code}"]
    environment = {**inherited, **environment}
    result = subprocess.run(
        line, cwd=DATA.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert not result.returncode, result.stderr
    return result.stdout.strip()


def test_deadlines_equal_those_of_the_uncompiled_past():
    """deadlines.json was written when the tier was Python with big integers, tuples and heapq. Digests of
    tiers with planes are newer: from the version that gave planes registers and a hashed interleave.
    """
    known = json.loads((DATA / "deadlines.json").read_text())
    assert known == {name: arrivals.digest(name, spec) for name, spec in arrivals.SPECS.items()}


def test_virtual_time_equals_that_of_the_uncompiled_past():
    for name, known in json.loads((DATA / "virtual-time.json").read_text()).items():
        spec = arrivals.SPECS[name]
        spills = [
            Spill(36_864, 4, 600, 100, 0.01, 100_001, depth=5, prefetch=prefetch, write_unit=0)
            for prefetch in (0, 1)
        ]
        found = [expect.closed_loop(spec, 100_003, 7, 3000)]
        found += [sum(simulate(spill, spec, 5).seconds) for spill in spills]
        assert [number.hex() for number in found] == known, name


@needs_compiled
@pytest.mark.parametrize("part", range(4))
def test_a_million_deadlines_are_the_same_compiled_and_uncompiled(part):
    uncompiled = run(
        "from hbf_fuse.tier import device; assert device.__file__.endswith('.py')\n"
        f"import arrivals, json; print(json.dumps(arrivals.digests({part}, 4)))",
        HBF_UNCOMPILED="1",
    )
    assert json.loads(uncompiled) == arrivals.digests(part, 4)
    assert arrivals.READS * len(arrivals.SPECS | arrivals.JITTERS) >= 1_000_000


@needs_compiled
def test_every_compilable_module_is_used_compiled():
    names = compiled.modules(compiled.sources())
    assert names
    for name in names:
        module = importlib.import_module(f"hbf_fuse.{name.rpartition('.')[0].replace('/', '.')}")
        assert module.__file__ == compiled.library(name)


def copied(folder: Path, with_libraries: bool = True) -> Path:
    """A copy of the package in another folder."""
    unwanted = shutil.ignore_patterns("__pycache__", *(() if with_libraries else ("*.so", "_built.py")))
    shutil.copytree(ROOT / "hbf_fuse", folder / "hbf_fuse", ignore=unwanted)
    return folder


LOOK = (
    "from hbf_fuse import compiled; from hbf_fuse.tier import Tier, TierSpec, device\n"
    "assert Tier(TierSpec(1)).reserve(0, 0, 1) == 1000\n"
    "print(device.__file__.rpartition('.')[2], compiled.why_not())"
)


@needs_compiled
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda package: None, "so"),
        (lambda package: edit(package / "tier/link.py", "\n"), "py the compiled modules are older"),
        (lambda package: edit(package / "tier/heap.pxd", "\n"), "py the compiled modules are older"),
        (lambda package: (package / "tier/new.pyx").write_text(""), "py the compiled modules are older"),
        (lambda package: (package / "_built.py").unlink(), "py the compiled modules were not built"),
        (
            lambda package: next((package / "tier").glob("draws.*.so")).unlink(),
            "py the compiled module of tier/draws.py is missing",
        ),
        (
            lambda package: (package / "_built.py").write_text('SUFFIX = ".cpython-27-x86_64.so"\n'),
            "py the compiled modules were built for another Python",
        ),
    ],
    ids=["nothing", "py", "pxd", "new", "not-built", "missing", "other-python"],
)
def test_libraries_of_other_sources_are_not_used(tmp_path, change, words):
    change(copied(tmp_path) / "hbf_fuse")
    said = run(LOOK, tmp_path)
    assert said.startswith(words)
    if words != "so":
        assert said.endswith("run `pip install` again, or tools/setup")


def edit(path: Path, more: str) -> None:
    path.write_text(path.read_text() + more)


def test_an_environment_variable_selects_the_sources():
    assert run(LOOK, HBF_UNCOMPILED="1").startswith("py HBF_UNCOMPILED is set")


def test_a_compiled_only_module_cannot_be_imported_uncompiled(tmp_path):
    package = copied(tmp_path, with_libraries=False) / "hbf_fuse"
    (package / "tier/only.pyx").write_text("")
    (package / f"tier/only{compiled.SUFFIX}").write_text("no library at all")
    said = run("try: import hbf_fuse.tier.only\nexcept ModuleNotFoundError as error: print(error)", tmp_path)
    assert said.startswith("hbf_fuse.tier.only exists compiled only; the compiled modules were not built")


@needs_tree
@pytest.mark.parametrize("fails", ["compiler", "module"])
def test_if_one_module_does_not_build_all_run_uncompiled(tmp_path, fails):
    pytest.importorskip("Cython")
    package = copied(tmp_path, with_libraries=False) / "hbf_fuse"
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    # Two modules are enough, and faster.
    for path in {*package.rglob("*.pxd")} - {package / "tier/heap.pxd"}:
        path.unlink()
    if fails == "module":
        (package / "tier/broken.pyx").write_text("cdef nothing that is Cython\n")
    line = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, **({"CC": "false"} if fails == "compiler" else {})}
    result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert not result.returncode, result.stderr
    assert "nothing is compiled" in result.stderr
    # The memory engine is C of its own, built or left out by itself.
    libraries = {path.name for path in tmp_path.rglob("*.so")}
    assert libraries == (set() if fails == "compiler" else {"shim.so", "twin.so"})
    assert not [*tmp_path.rglob("_built.py")]
    assert run(LOOK, tmp_path).startswith("py the compiled modules were not built")


def test_the_choice_of_compiled_modules_takes_little_time():
    code = """
import time
from hbf_fuse import compiled
def seconds():
    begin = time.perf_counter()
    compiled.decide()
    return time.perf_counter() - begin
print(min(seconds() for _ in range(20)))
"""
    # It takes about 1 ms. The limit is wide, since machines are shared.
    assert float(run(code)) < 0.02


def test_the_choice_of_compiled_modules_imports_nothing_slow():
    code = """
before = set(sys.modules)
import hbf_fuse
print({"pathlib", "hashlib", "typing", "importlib.util", "re", "dataclasses"} & set(sys.modules) - before)
"""
    assert run(code) == "set()"
