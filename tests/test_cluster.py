"""Sweeps and grids on the workers of a Dask scheduler: real ones, each as if on a machine of its own."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from benchmarks.machines import machines

from hbf_fuse.cluster import cores, models, scheduler
from hbf_fuse.cluster.messages import Wanted
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import mountinfo
from hbf_fuse.kv import sim
from hbf_fuse.kv.spill import Spill
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Finished
from hbf_fuse.sweep.cell import Cell, ModelFile, describe, described_as
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload.llama import BenchOptions
from hbf_fuse.workload.serve import ServeOptions

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
# One thread, so that two workers' llama-bench have a core each.
GRID = ["--mbps", "800,900", "--lat", "0,1", "--repeats", "1", "-p", "8", "-n", "2", "-t", "1"]
SPILL = Spill(kv_bytes=9216, layers=8, context=512, resident=0, compute_seconds=0.001)
POINTS = [(SPILL, TierSpec(mbps, 0.1, jitter="uniform:0.05")) for mbps in range(100, 1100, 10)]
simulated = partial(sim.row, tokens=16, capacity_gb=None)


@pytest.fixture
def own_mounts(tmp_path):
    """How many mounts are below this test's folder."""
    return lambda: [mount for mount in mountinfo.mounts() if mount.mountpoint.is_relative_to(tmp_path)]


@pytest.fixture
def long(request):
    """Of tests that take 15 to 30 seconds: all checks together are to take less than 15 minutes."""
    if not request.config.getoption("--cluster"):
        pytest.skip("takes long: ask for it with --cluster")


@pytest.fixture(scope="module")
def two(tmp_path_factory, llama_bench):
    with machines(tmp_path_factory.mktemp("cluster") / "machines", ["one", "two"]) as known:
        yield known


def sweep(known, model, output, *options, **how):
    line = [*HBF, "sweep", model, *GRID, "-o", output, "--on", known.address, *options]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=100, **how)


def test_each_cell_is_measured_once_on_some_machine_and_says_on_which(two, tiny_model, tmp_path, own_mounts):
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    stranger = tmp_path / "stranger.gguf"
    stranger.write_bytes(tiny_model.read_bytes()[:-1] + b"\1")
    elsewhere.mkdir()
    refused = sweep(two, stranger, results, "--model-path", elsewhere)
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert "one: no stranger.gguf with SHA-256" in last and "two: no stranger.gguf" in last
    assert "--model-path" in last
    (elsewhere / "another-name.gguf").write_bytes(stranger.read_bytes())
    said = sweep(two, stranger, results, "--model-path", elsewhere)
    assert said.returncode == 0, said.stderr

    runs = Results(results).all()
    assert len(runs) == 4 and all(isinstance(run, Finished) for run in runs)
    assert {run.conditions.machine for run in runs} == {"one", "two"}
    assert all(run.cell.model.name == "stranger.gguf" for run in runs)
    # What Dask sets for its workers is kept from what is measured.
    assert not any("OMP_NUM_THREADS" in str(run.to_dict()["command"]) for run in runs)
    with (results / "cells.csv").open() as file:
        assert {row["machine"] for row in csv.DictReader(file)} == {"one", "two"}
    page = (results / "report.md").read_text()
    assert "## Machines" in page and "| one |" in page
    assert "hbf: one: " in said.stderr and "hbf: two: " in said.stderr
    assert not own_mounts()

    again = sweep(two, stranger, results)
    assert again.returncode == 0 and "4 of 4 cells are there already" in again.stderr
    (results / "runs" / f"{runs[0].cell.name}.json").unlink()
    alone = [*HBF, "sweep", stranger, *GRID, "-o", results]
    resumed = subprocess.run(alone, capture_output=True, text=True, check=True, timeout=100)
    assert "1 of 4 cells measured now" in resumed.stderr
    (here,) = [run for run in Results(results).all() if not run.conditions.machine]
    assert here.cell == runs[0].cell


def test_a_worker_that_dies_has_its_cell_measured_elsewhere(
    long, tiny_model, llama_bench, tmp_path, own_mounts
):
    results = tmp_path / "results"
    with machines(tmp_path / "machines", ["one", "two"]) as known:
        line = [*HBF, "sweep", tiny_model, *GRID, "-n", "32", "-o", results, "--on", known.address]
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) as running:
            killed = None
            while running.poll() is None and killed is None:
                time.sleep(0.02)
                if list(results.glob("runs/*.json")) and (names := known.measuring()):
                    killed = names[0]
                    known.kill(killed)
            said = running.communicate(timeout=100)[1]
        assert killed and running.returncode == 0, said
        assert f"hbf: {killed} is gone with " in said
        lost = said.split(f"{killed} is gone with ")[1].split()[0]
        runs = {run.cell.name: run for run in Results(results).all()}
        assert len(runs) == 4 and all(isinstance(run, Finished) for run in runs.values())
        assert runs[lost].conditions.machine == ({"one", "two"} - {killed}).pop()
        wait_for(lambda: not own_mounts())

        line[line.index("-o") + 1] = tmp_path / "other"
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) as running:
            wait_for(known.measuring, 60)
            known.kill("scheduler")
            said = running.communicate(timeout=30)[1]
        assert running.returncode == 1
        assert "is gone; start it again; the same command goes on" in said.splitlines()[-1]
        wait_for(lambda: not known.measuring() and not own_mounts())


def test_ctrl_c_ends_running_cells_and_keeps_finished_ones(long, two, tiny_model, tmp_path, own_mounts):
    results = tmp_path / "results"
    line = [*HBF, "sweep", tiny_model, *GRID, "-n", "64", "-o", results, "--on", two.address]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL) as running:
        wait_for(lambda: list(results.glob("runs/*.json")) and two.measuring(), 60)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=30)[1]
    assert running.returncode == 130
    assert "finished cells are kept" in said and "Traceback" not in said
    wait_for(lambda: not two.measuring() and not own_mounts())
    assert 0 < len(Results(results).all()) < 4


def test_two_sweeps_share_a_cluster_and_no_machine_measures_two_cells_at_once(
    long, two, tiny_model, tmp_path
):
    lines = [
        [
            *HBF,
            "sweep",
            tiny_model,
            *GRID,
            "--mbps",
            "800",
            "--lat",
            "0",
            "-o",
            tmp_path / name,
            "--on",
            two.address,
        ]
        for name in ("first", "second")
    ]
    both = [subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for line in lines]
    most = 0
    while any(each.poll() is None for each in both):
        most = max(most, sum(two.benches().values()))
        time.sleep(0.02)
    assert [each.returncode for each in both] == [0, 0]
    assert most == 1
    assert all(len(Results(tmp_path / name).all()) == 1 for name in ("first", "second"))


def test_workers_that_cannot_measure_are_named(long, tiny_model, llama_bench, tmp_path):
    if os.geteuid():
        pytest.skip("hides /dev/fuse in a mount namespace, which takes root")
    other = tmp_path / "other" / "hbf_fuse-99.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: hbf-fuse\nVersion: 99\n")
    hide = "mount -t tmpfs -o nodev x /mnt && mknod /mnt/fuse c 10 229 && mount --bind /mnt/fuse /dev/fuse"
    hidden = ["unshare", "--mount", "sh", "-c", f'{hide} && exec "$@"', "sh"]
    with machines(tmp_path / "machines", []) as known:
        known.start_worker("newer", PYTHONPATH=str(other.parent))
        known.start_worker("plain", resources="")
        known.start_worker("fuseless", before=hidden)
        known.wait_for(3)
        refused = sweep(known, tiny_model, tmp_path / "results", "--mbps", "800", "--lat", "0")
        assert refused.returncode == 1
        last = refused.stderr.splitlines()[-1]
        assert "newer: it has hbf-fuse 99" in last and "fuseless: " in last and "/dev/fuse" in last
        assert "plain gets no cells: it was started without --resources hbf=1" in refused.stderr
        known.start_worker("good")
        known.wait_for(4)
        done = sweep(known, tiny_model, tmp_path / "results", "--mbps", "800", "--lat", "0")
        assert done.returncode == 0, done.stderr
        assert {run.conditions.machine for run in Results(tmp_path / "results").all()} == {"good"}


@pytest.mark.parametrize("address", ["127.0.0.1", "tcp://127.0.0.1", "http://127.0.0.1:8786", "", "a b:1"])
def test_what_is_no_address_is_said_at_once(address):
    with pytest.raises(HbfError, match="is no address of a Dask scheduler"), scheduler.connected(address):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "127.0.0.1:1"])
def test_a_scheduler_that_is_not_there_is_one_line(address, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "CONNECT_SECONDS", 1)
    with pytest.raises(HbfError, match="no Dask scheduler answers at"), scheduler.connected(address):
        pass


def test_without_on_nothing_imports_dask(tiny_model, llama_bench, tmp_path):
    program = (
        "import sys\nfrom hbf_fuse.cli.sweep import main\n"
        "try:\n    main()\nfinally:\n    assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    line = [
        sys.executable,
        "-c",
        program,
        tiny_model,
        *GRID[:2],
        "--lat",
        "0",
        *GRID[4:],
        "-o",
        tmp_path / "r",
    ]
    subprocess.run(line, check=True, capture_output=True, timeout=100)


def test_a_missing_dask_is_said_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(HbfError, match=r"pip install 'hbf-fuse\[dask\]'"), scheduler.connected("tcp://x:1"):
        pass


def test_a_grid_on_workers_or_processes_gives_what_one_core_gives(two, monkeypatch):
    monkeypatch.setattr(cores, "ALONE_SECONDS", 0.0)
    alone = [simulated(*point) for point in POINTS]
    assert list(cores.over(simulated, POINTS, 3)) == alone
    assert list(scheduler.over(simulated, POINTS, two.address)) == alone


def test_commands_take_jobs_and_on(two, tiny_model):
    line = [*HBF, "kv", "sim", tiny_model, "--context", "256,512", "--mbps", "100,200", "--json"]
    outputs = [
        subprocess.run([*line, *how], capture_output=True, check=True).stdout
        for how in ([], ["--jobs", "1"], ["--on", two.address])
    ]
    assert len(json.loads(outputs[0])) == 4 and len(set(outputs)) == 1
    for command in (["validate", "kyung-*"], ["kv", "solve", tiny_model, "--tps", "2,4", "--context", "512"]):
        outputs = [
            subprocess.run([*HBF, *command, "--json", *how], capture_output=True, check=True).stdout
            for how in (["-j", "1"], ["--on", two.address])
        ]
        assert len(set(outputs)) == 1
    both = subprocess.run([*line, "-j", "1", "--on", two.address], capture_output=True, check=False)
    assert both.returncode == 2


def fails_at_seven(number):
    if number >= 7:
        raise HbfError(f"{number} is too much", "take less")
    return number


def test_the_first_failure_of_a_grid_is_raised_whoever_met_it(monkeypatch):
    monkeypatch.setattr(cores, "ALONE_SECONDS", 0.0)
    found: list[int] = []
    with pytest.raises(HbfError, match="7 is too much; take less"):
        found.extend(cores.over(fails_at_seven, [(number,) for number in range(30)], 2))


def test_a_short_grid_starts_no_process(monkeypatch):
    monkeypatch.setattr(cores, "_by_processes", None)
    assert list(cores.over(abs, [(-1,), (2,)], 8)) == [1, 2]
    assert list(cores.over(abs, [], 8)) == []


def test_ctrl_c_ends_a_grid_and_its_processes(tiny_model):
    line = [*HBF, "kv", "sim", tiny_model, "--context", "4096", "--mbps", ",".join(map(str, range(100, 900)))]
    line += ["--lat", "0.1,0.2", "--jitter", "uniform:0.05", "--tokens", "2000", "-j", "2"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        wait_for(lambda: children(running.pid) >= 2)
        time.sleep(0.5)
        os.killpg(running.pid, signal.SIGINT)
        said = running.communicate(timeout=20)[1]
    assert running.returncode == 130 and "Traceback" not in said
    wait_for(lambda: not group(running.pid))


@pytest.mark.parametrize(
    "cell",
    [
        Cell(ModelFile((Path("/m/model.gguf"),), 7, "ab"), TierSpec(500, 1)),
        Cell(
            ModelFile((Path("/m/model.gguf"),), 7, "ab"),
            TierSpec(None, 0.5, jitter="normal:0.1", planes=4, page_bytes=4096, t_read_us=10, seed=3),
            repeat=2,
            mode="stream",
            engine="memory",
            bench=BenchOptions(1, 2, 3, 1, "dio", ("-fa", "on")),
            layout=Layout(1 << 28, "fifo", ("_exps=slow", ".*=dram"), {"slow": TierSpec(100, 2)}),
            serve=ServeOptions((1, 2), 4, 512, 3, 5, 6.5),
            readahead_kib=64,
        ),
    ],
)
def test_a_cell_is_the_same_after_a_journey(cell):
    sent = json.loads(json.dumps(describe(cell).model_dump(exclude_unset=True)))
    known = type(describe(cell)).model_validate(sent)
    here = described_as(known, cell.model, cell.timeout_seconds)
    assert here == cell and describe(here) == describe(cell)


def test_a_model_is_known_by_its_bytes_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    for name, content in (("model.gguf", b"other"), ("same.gguf", b"bytes"), ("longer.gguf", b"bytes!")):
        (tmp_path / "a" / name).write_bytes(content)
    digest = ModelFile.of(tmp_path / "a" / "same.gguf").sha256
    wanted = Wanted(names=["model.gguf"], size=5, sha256=digest)
    assert models.find(wanted, tmp_path / "a", print).path == tmp_path / "a" / "same.gguf"
    assert models.find(wanted, tmp_path / "a" / "same.gguf", print).path.name == "same.gguf"
    for place in (tmp_path / "a" / "longer.gguf", tmp_path / "missing"):
        with pytest.raises(HbfError, match=r"no model\.gguf with SHA-256"):
            models.find(wanted, place, print)


def children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return len(text.split())


def group(pid):
    """Processes of a session that still run."""
    return [
        entry
        for entry in Path("/proc").glob("[0-9]*/stat")
        if entry.exists() and entry.read_text().rsplit(")", 1)[1].split()[3] == str(pid)
    ]


def wait_for(what, seconds=20):
    give_up = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.05)
