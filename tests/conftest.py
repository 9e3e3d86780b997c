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
    """Tests of what was compiled from other sources would tell nothing."""
    if not compiled.is_stale():
        return
    root = Path(compiled.PACKAGE).parent
    line = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
    importlib.invalidate_caches()
    compiled.decide()
    if compiled.is_stale():
        pytest.exit(f"{compiled.why_not()}\n{built.stderr.strip()}", returncode=3)


# A script's `&` has pytest ignore Ctrl-C, nohup has it ignore a hangup. Every command under test would
# inherit that; a handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

# Before anything that may be compiled is imported.
_build_what_is_stale()

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import presets, synth
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import llama

# No deadline for examples: this machine may be busy with others.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

Mount = Callable[..., Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vm", action="store_true", help="also boot virtual machines (tests/test_vm.py)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that nobody waits for it alone at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_vm.py", "test_resume.py"))
    # Timing tests get a second try. This marker would outweigh --reruns on the command line.
    if config.getoption("reruns", 0) is None:
        for item in items:
            if item.get_closest_marker("timing"):
                item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names and counts the tests that were run again."""
    again = {report.nodeid for report in terminalreporter.getreports("rerun")}
    passed = again & {report.nodeid for report in terminalreporter.getreports("passed")}
    if again:
        terminalreporter.section(f"timing tests run again: {len(again)}, passed then: {len(passed)}", "-")
        for name in sorted(again):
            terminalreporter.line(f"{'passed' if name in passed else 'failed'} {name}")


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
        return llama.find()
    except HbfError as error:
        pytest.skip(str(error))
