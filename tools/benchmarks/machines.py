"""A Dask scheduler and workers, each as if on a machine of its own: with its own home, cache, scratch."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from hbf_fuse.workload.program import BENCH

DASK = [sys.executable, "-P", "-m", "dask"]


class Machines:
    """Of one scheduler. address: its. folder: where machines have their folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, subprocess.Popen[bytes]] = {}
        self.address = ""

    def _environment(self, home: Path) -> dict[str, str]:
        (home / "tmp").mkdir(parents=True)
        named = {} if "HBF_LLAMA_BENCH" in os.environ else {"HBF_LLAMA_BENCH": str(BENCH.find())}
        known = {key: value for key, value in os.environ.items() if not key.startswith("XDG_")}
        return known | named | {"HOME": str(home), "TMPDIR": str(home / "tmp")}

    def start(
        self, name: str, arguments: Sequence[str], before: Sequence[str] = (), **environment: str
    ) -> None:
        """Run `dask ...` as on a machine of this name."""
        home = self.folder / name
        with (self.folder / f"{name}.log").open("wb") as log:
            self._known[name] = subprocess.Popen(
                [*before, *DASK, *arguments],
                cwd=self.folder,
                env=self._environment(home) | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def start_scheduler(self) -> None:
        """On a free port of this machine alone."""
        file = self.folder / "scheduler.json"
        line = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        self.start("scheduler", [*line, "--scheduler-file", str(file)])
        give_up = time.monotonic() + 30
        while not file.exists() or not file.read_text().strip():
            assert time.monotonic() < give_up, self.log("scheduler")
            time.sleep(0.05)
        self.address = json.loads(file.read_text())["address"]

    def start_worker(
        self, name: str, resources: str = "hbf=1", before: Sequence[str] = (), **environment: str
    ) -> None:
        """A worker with a machine to itself. before: a command that runs it."""
        line = ["worker", self.address, "--name", name, "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        line += [
            "--host",
            "127.0.0.1",
            "--memory-limit",
            "0",
            *(["--resources", resources] if resources else []),
        ]
        self.start(name, [*line, "--local-directory", str(self.folder / name / "tmp")], before, **environment)

    def wait_for(self, count: int) -> None:
        """Until so many workers are there."""
        from distributed import Client

        with Client(self.address, set_as_default=False) as client:
            client.wait_for_workers(count, timeout=60)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def benches(self) -> dict[str, int]:
        """How many llama-bench run on each worker now."""
        found = dict.fromkeys(self._known, 0)
        for name, process in self._known.items():
            with suppress(psutil.Error):
                below = psutil.Process(process.pid).children(recursive=True)
                found[name] = sum(_name(child) == "llama-bench" for child in below)
        return found

    def measuring(self) -> list[str]:
        """Workers whose llama-bench runs now."""
        return [name for name, count in self.benches().items() if count]

    def kill(self, name: str) -> None:
        """As a machine that loses its power: nothing of it can say goodbye."""
        process = self._known.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def end(self) -> None:
        """End the workers, then the scheduler: a worker that loses it meanwhile may hang."""
        for process in reversed(self._known.values()):
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def machines(folder: Path, names: list[str]) -> Iterator[Machines]:
    """A scheduler and such workers for the length of a block."""
    folder.mkdir()
    known = Machines(folder)
    try:
        known.start_scheduler()
        for name in names:
            known.start_worker(name)
        yield known
    finally:
        known.end()


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
