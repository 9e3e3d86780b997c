"""The published parts: man pages, completion, and a wheel that works in an empty environment."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from generated import manpages

import hbf_fuse

ROOT = Path(hbf_fuse.__file__).parent.parent
PAGES = ("hbf.1", "hbf-mount.1", "hbf-sweep.1", "hbf-umount.1")
BIN = Path(sys.executable).parent


def run(*line: str | Path, cwd: Path | None = None, **environment: str) -> str:
    ours = {**os.environ, **environment}
    result = subprocess.run(line, cwd=cwd, env=ours, capture_output=True, text=True, timeout=110, check=False)
    assert not result.returncode, result.stdout + result.stderr
    return result.stdout


def test_man_pages_say_what_the_help_says():
    made = {path.name: text for path, text in manpages.pages().items()}
    assert set(made) == set(PAGES)
    old = [name for name, text in made.items() if (manpages.FOLDER / name).read_text() != text]
    assert not old, f"{old}: run tools/pages"
    for name in ("status", "kv solve", "trace replay"):
        assert f'.SS "hbf {name} ' in made["hbf.1"]


@pytest.mark.parametrize(
    ("command", "typed", "offered"),
    [("hbf", "hbf sw", "sweep"), ("hbf", "hbf kv so", "solve"), ("hbf-mount", "hbf-mount --mb", "--mbps")],
)
def test_a_shell_completes_commands_and_options(command, typed, offered):
    if not (BIN / command).exists():
        pytest.skip(f"{command} is not installed beside {sys.executable}")
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    variable = f"_{command.upper().replace('-', '_')}_COMPLETE"
    environment = {**words, variable: "complete_bash"}
    assert offered in run(BIN / command, **environment).split()


def test_a_wheel_made_of_the_sdist_works_in_an_empty_environment(tmp_path):
    """Uncompiled, which takes seconds instead of a minute. tests/test_compiled.py tests the compiled package.

    Dependencies are taken from this environment, so that no network is needed.
    """
    if not find_spec("build"):
        pytest.skip("build is not installed; `pip install build`")
    if not find_spec("setuptools"):
        pytest.skip("setuptools is not installed: a wheel would need the network")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "inject", "_built.py")
    for name in ("hbf_fuse", "share"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    wanted = {str(path.relative_to(source)) for path in (source / "hbf_fuse").rglob("*") if path.is_file()}
    out = tmp_path / "dist"
    # Without --sdist or --wheel, the wheel is made from the sdist.
    line = [sys.executable, "-P", "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out]
    (tmp_path / "without/Cython").mkdir(parents=True)
    (tmp_path / "without/Cython/__init__.py").write_text("raise ImportError")
    run(*line, source, PYTHONPATH=str(tmp_path / "without"))
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        unpacked = set(archive.namelist())
    assert wanted <= packed and wanted <= unpacked
    assert {f"share/man/man1/{page}" for page in PAGES} <= packed
    assert {"hbf_fuse/_built.py"} & (packed | unpacked) == set()

    empty = tmp_path / "empty"
    run(sys.executable, "-P", "-m", "venv", "--without-pip", empty)
    python = empty / "bin/python"
    run(sys.executable, "-P", "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = empty.glob("lib/python*/site-packages")
    needs = [path for path in sys.path if path.endswith("-packages")]
    # Only the dependencies of hbf-fuse: .pth files in these folders are not executed, so an editable install
    # of hbf-fuse is not found.
    (site / "needs.pth").write_text("\n".join(needs) + "\n")
    where = run(python, "-P", "-c", "import hbf_fuse; print(hbf_fuse.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(empty)
    assert run(empty / "bin/hbf", "--version", cwd=tmp_path).strip() == f"hbf-fuse {hbf_fuse.__version__}"
    assert "hbf-gen1" in run(empty / "bin/hbf", "profile", "list", cwd=tmp_path)
    assert (
        run(empty / "bin/hbf", "model", "make", "tiny", "-o", tmp_path / "tiny.gguf", cwd=tmp_path)
        is not None
    )
    assert (tmp_path / "tiny.gguf").stat().st_size > 0
    for page in PAGES:
        assert (empty / "share/man/man1" / page).exists()
