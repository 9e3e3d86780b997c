"""Real mounts, real models: each test gets its own directory and leaves nothing behind."""

import importlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from hbf_fuse import compiled


def _build_what_is_stale() -> None:
    """Compile again if needed: tests of code compiled from other sources would prove nothing."""
    if not compiled.is_stale():
        return
    root = Path(compiled.PACKAGE).parent
    line = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    compiled.decide()
    if compiled.is_stale():
        pytest.exit(f"{compiled.why_not()}\n{built.stderr.strip()}", returncode=3)


# Started with `&` from a script, pytest ignores Ctrl-C; started with nohup, it ignores a hangup. Every
# command under test would inherit that. A handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# What no command expected is one line for users; tests look for its traceback.
os.environ["HBF_TRACEBACK"] = "1"

# This must run before any module that may be compiled is imported.
_build_what_is_stale()

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import presets, synth
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload.program import BENCH

# No deadline for examples: this machine may be busy with other work.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

Mount = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vm", action="store_true", help="also boot virtual machines (tests/test_vm.py)")
    parser.addoption("--cluster", action="store_true", help="also what takes long in tests/test_cluster.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start the longest tests first, so that the run does not wait for them alone at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_vm.py", "test_resume.py"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    synth.write(presets.load("tiny"), path)
    return path


@pytest.fixture
def noise(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a file of random bytes."""

    def make(size: int) -> Path:
        path = tmp_path / f"noise-{size}"
        path.write_bytes(random.Random(size).randbytes(size))
        return path

    return make


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a source until the test ends: mount(source, mbps=500, lat=1, engine="kernel") -> mountpoint."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    with ExitStack() as stack:
        count = 0

        def make(source: Path, mbps: float | None = None, lat: float = 0.0, engine: str = "kernel") -> Path:
            nonlocal count
            count += 1
            point = tmp_path / f"mnt{count}"
            point.mkdir()
            return stack.enter_context(child.mounted(MountConfig(source, point, TierSpec(mbps, lat), engine)))

        yield make


@pytest.fixture(scope="session")
def llama_bench() -> Path:
    try:
        return BENCH.find()
    except HbfError as error:
        pytest.skip(str(error))
