"""The memory engine: mappings at the speed of memory, the same tier, and what goes wrong with it."""

import ctypes
import dataclasses
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import arrivals
import psutil
import pytest

from hbf_fuse import doctor
from hbf_fuse.cli import profile
from hbf_fuse.doctor import serving
from hbf_fuse.engine.memory import build, library
from hbf_fuse.engine.memory.door import environment
from hbf_fuse.engine.memory.service import Service
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.filesystem import NO_LAYOUT
from hbf_fuse.fs.placement import Layout
from hbf_fuse.mount import client
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.sweep import grid
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.errors import SpecError
from hbf_fuse.traces.trace import Trace, header_line


@pytest.fixture(scope="module", autouse=True)
def _built():
    try:
        library.twin()
    except HbfError:
        library.twin.cache_clear()
        if why := build.build(build.FOLDER):
            pytest.skip(why)


def twin_deadlines(spec: TierSpec, reads: "array[int]") -> "array[int]":
    twin = library.twin()
    tier = ctypes.create_string_buffer(twin.hbf_tier_size())
    twin.hbf_tier_begin(tier, ctypes.byref(library.Spec.of(spec)))
    deadlines = array("q", bytes(len(reads) // 3 * 8))
    twin.hbf_reserve(
        tier,
        (ctypes.c_int64 * len(reads)).from_buffer(reads),
        (ctypes.c_int64 * len(deadlines)).from_buffer(deadlines),
        ctypes.c_uint64(len(deadlines)),
    )
    return deadlines


@pytest.mark.parametrize("name", arrivals.SPECS | arrivals.JITTERS)
def test_the_twin_in_c_has_the_deadlines_of_the_tier(name):
    """A million random arrivals over all of these tiers: bursts, pauses, and reads that come late."""
    spec = (arrivals.SPECS | arrivals.JITTERS)[name]
    reads = array("q", (figure for read in arrivals.arrivals(name, spec) for figure in read))
    tier = Tier(spec)
    expected = array("q", (tier.reserve(*reads[at : at + 3]) for at in range(0, len(reads), 3)))
    assert twin_deadlines(spec, reads) == expected


def test_a_million_arrivals_are_compared():
    assert arrivals.READS * len(arrivals.SPECS | arrivals.JITTERS) >= 1_000_000


def test_an_arm_has_the_same_deadlines():
    spec = TierSpec(200, 1, "normal:0.1", seek_ms=2, depth=3)
    reads = array("q", (figure for read in arrivals.arrivals("depth", spec) for figure in read))
    tier = Tier(spec)
    expected = array("q", (tier.reserve(*reads[at : at + 3]) for at in range(0, len(reads), 3)))
    assert twin_deadlines(spec, reads) == expected


MIB = 1 << 20
SIZE = 5 * MIB + 1234
CHUNKS = -(-SIZE // (64 << 10))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """tests/data/mapping.c, compiled."""
    made = tmp_path_factory.mktemp("program") / "mapping"
    source = Path(__file__).parent / "data/mapping.c"
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-o", made, source, "-pthread"], check=True)
    return made


@pytest.fixture(scope="module")
def static_program(tmp_path_factory):
    """The same without a dynamic linker."""
    made = tmp_path_factory.mktemp("program") / "static"
    source = Path(__file__).parent / "data/mapping.c"
    line = ["cc", "-static", "-O1", "-o", made, source, "-pthread"]
    if subprocess.run(line, capture_output=True, check=False).returncode:
        pytest.skip("no static C library")
    return made


class Served:
    """Files as memory, without a mount."""

    def __init__(self, source: Path, spec: TierSpec, layout: Layout, floor: Floor) -> None:
        self.source = source
        self.fs = Filesystem(source, spec, layout)
        self.fs.served.mapped = self.service = Service(self.fs.served)
        self.service.reckon_with(floor)
        self.socket = Path()

    def start(self, *line: object, inject: bool = False, **options: Any) -> "subprocess.Popen[str]":
        env = {**os.environ, **environment(self.socket, inject)}
        return subprocess.Popen(
            [*map(str, line)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def run(self, *line: object, **options: Any) -> tuple[int, str]:
        """Exit code and what was said."""
        with self.start(*line, **options) as process:
            said = "".join(process.communicate(timeout=60))
        return process.returncode, said.strip()

    @property
    def stats(self):
        return self.fs.hidden.stats_document()

    @property
    def file(self):
        (file,) = self.stats["files"].values()
        return file


@pytest.fixture
def served(noise):
    """served(size, spec, layout) -> Served, until the test ends."""
    with ExitStack() as stack:

        def make(
            source: Path | int = SIZE,
            spec: TierSpec = TierSpec(2000, 0.01, chunk_bytes=64 << 10),  # noqa: B008
            layout: Layout = NO_LAYOUT,
        ) -> Served:
            made = Served(noise(source) if isinstance(source, int) else source, spec, layout, Floor())
            made.socket = stack.enter_context(made.service.door.answering())
            return made

        yield make


READ_THRICE = """
import mmap, sys, zlib
file = open(sys.argv[1], "rb")
mapped, want = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), zlib.crc32(file.read())
for _ in range(3):
    have = 0
    for at in range(0, len(mapped), 1 << 18):
        have = zlib.crc32(mapped[at : at + (1 << 18)], have)
    assert have == want
"""

WAYS = "plain populate willneed handler blocked unmap fixed remap protect write direct lock drop fork threads"


@pytest.mark.parametrize("way", WAYS.split())
def test_a_program_that_does_odd_things_gets_the_right_bytes(served, program, tmp_path, way):
    memory = served()
    assert memory.run(program, way, memory.source, cwd=tmp_path) == (0, "right")
    mapped = memory.stats["mapped"]
    assert not mapped["altered"] and not mapped["failed"]
    if way not in ("unmap", "fixed", "remap", "write", "direct"):
        assert memory.file["complete"]
        assert memory.stats["reads"] == CHUNKS, "each chunk waits for the tier once, whoever reads it"
        assert mapped["proven_bytes"] >= SIZE
    assert mapped["connected"] == (2 if way == "fork" else 1)


def test_a_mapping_waits_for_the_tier(served, program):
    """80 chunks one after the other, 64 KiB at 10 MB/s and 1 ms each: no machine is faster than that."""
    memory = served(spec=TierSpec(10, 1, chunk_bytes=64 << 10))
    began = time.monotonic()
    assert memory.run(program, "plain", memory.source) == (0, "right")
    assert time.monotonic() - began > SIZE / 10e6 + CHUNKS * 0.001
    staging = memory.file["staging"]
    assert staging["model_mbps"] <= expect.mapped_mbps(memory.fs.served.spec) * 1.001


def test_two_programs_share_the_tier_and_what_has_come(served, program):
    memory = served(spec=TierSpec(50, 0.1, chunk_bytes=64 << 10))
    with (
        memory.start(program, "plain", memory.source) as one,
        memory.start(program, "plain", memory.source) as two,
    ):
        said = [process.communicate(timeout=60) for process in (one, two)]
    assert said == [("right\n", "")] * 2
    stats = memory.stats
    assert stats["reads"] == CHUNKS and stats["mapped"]["connected"] == 2 and not stats["mapped"]["altered"]


@pytest.mark.parametrize("policy", ["pin", "fifo"])
def test_a_budget_holds_by_the_kernels_own_count(served, policy):
    layout = Layout(24 * MIB, policy)
    memory = served(64 * MIB, TierSpec(1000, 0.05, chunk_bytes=256 << 10), layout)
    assert memory.run(sys.executable, "-c", READ_THRICE, memory.source) == (0, "")
    stats = memory.stats
    resident = stats["resident"]
    assert 10 * MIB < resident["most_resident_bytes"] <= 24 * MIB * 1.05
    assert resident["evicted_bytes"] > 64 * MIB
    assert not stats["mapped"]["altered"] and not stats["overfills"]
    # fifo keeps nothing that a cycle reads again, pin what came first.
    again = stats["bytes_read"] / (64 * MIB)
    assert again > 2.9 if policy == "fifo" else 2.0 < again < 2.8


def test_tensors_in_dram_do_not_wait(served, tiny_model):
    layout = Layout(place=(".*=dram",))
    memory = served(tiny_model, TierSpec(0.001, 100, chunk_bytes=64 << 10), layout)
    assert memory.run(sys.executable, "-c", READ_THRICE, memory.source) == (0, "")
    assert set(memory.stats["tier_bytes"]) == {"hbf", "dram"} and not memory.stats["tier_bytes"]["hbf"]


def test_a_live_tier_can_be_changed(served, program):
    memory = served(spec=TierSpec(20, 0.1, chunk_bytes=64 << 10))
    with memory.start(program, "plain", memory.source) as reader:
        while not memory.stats["reads"]:
            assert reader.poll() is None
        memory.service.reckon_with(Floor(), lambda _: Floor(((0, 30_000),)))
        memory.service.exchange(TierSpec(2000, 0.01, chunk_bytes=64 << 10))
        assert reader.communicate(timeout=60) == ("right\n", "")
    assert not memory.stats["mapped"]["altered"]
    assert "tier-changed" in memory.file["staging"]["reasons"]
    assert memory.stats["floor"]["fixed_ns"] == {"0": 30_000}


def test_a_trace_has_every_fault(served, program):
    memory = served()
    memory.run(program, "plain", memory.source)
    trace = Trace.parse(header_line(memory.fs.hidden.spec_document()) + memory.fs.served.ring.since(0)[0])
    assert [(read.offset, read.nbytes) for read in trace] == [
        (at, min(64 << 10, SIZE - at)) for at in range(0, SIZE, 64 << 10)
    ]


# What the verdict rests on


def test_records_that_are_not_the_tiers_make_the_verdict_unsure(served, program):
    memory = served(spec=TierSpec(20, 0.1, chunk_bytes=64 << 10))
    first = memory.service._records_at
    with memory.start(program, "plain", memory.source) as reader:
        while not memory.stats["reads"]:
            pass
        # As if the link were free sooner: what a reader could write to come early.
        state, tier = memory.service._state, memory.service._tiers_at
        for at in range(first, first + 48 * 20, 48):
            state[at + 8 : at + 16] = bytes(8)
        offset = tier + ctypes.sizeof(library.Spec)
        state[offset : offset + 8] = (12345).to_bytes(8, "little")
        reader.communicate(timeout=60)
    assert "reader-altered" in memory.file["staging"]["reasons"]
    assert memory.file["staging"]["verdict"] != "agrees"


def test_reads_that_the_kernel_cannot_confirm_make_the_verdict_unsure(served, program):
    memory = served(spec=TierSpec(20000, 0, chunk_bytes=64 << 10))
    memory.service._proof.measure = lambda processes: {}
    assert memory.run(program, "killed", memory.source)[0] == -signal.SIGKILL
    assert "reader-unproven" in memory.file["staging"]["reasons"]


def test_nobody_can_change_the_bytes(served):
    memory = served()
    code = (
        "import os, sys, mmap\n"
        "f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\n"
        "for n in range(3, 20):\n"
        "    try: found = 'hbf-model' in os.readlink(f'/proc/self/fd/{n}')\n"
        "    except OSError: continue\n"
        "    if found:\n"
        "        try: os.write(n, b'x')\n"
        "        except OSError as error: print(error.strerror)\n"
        "        again = os.open(f'/proc/self/fd/{n}', os.O_RDWR)\n"
        "        try: os.write(again, b'x')\n"
        "        except OSError as error: print(error.strerror)\n"
        "        try: mmap.mmap(again, 4096)\n"
        "        except OSError as error: print(error.strerror)\n"
        "        break\n"
    )
    said = memory.run(sys.executable, "-c", code, memory.source)[1]
    assert said.split("\n") == ["Bad file descriptor", "Operation not permitted", "Operation not permitted"]


# What goes wrong


def test_a_reader_whose_server_ends_ends_too(served, noise, program):
    memory = Served(noise(SIZE), TierSpec(2000, 0.01, chunk_bytes=4096), NO_LAYOUT, Floor())
    with ExitStack() as stack:
        memory.socket = stack.enter_context(memory.service.door.answering())
        reader = memory.start(program, "for-ever", memory.source)
        assert reader.stdout.readline() == "begun\n"
        stack.close()
        with reader:
            assert "server has ended" in reader.communicate(timeout=60)[1]
        assert reader.returncode == 125


def test_a_new_reader_without_a_server_ends(served, program):
    memory = served()
    memory.socket = memory.socket.parent / "gone"
    code, said = memory.run(program, "plain", memory.source)
    assert code == 125 and "cannot reach the mount's server" in said


def test_seccomp_that_forbids_userfaultfd_is_told(served, program):
    code, said = (memory := served()).run(program, "seccomp", memory.source)
    assert code == 125 and said.startswith("hbf: userfaultfd(2) is not permitted here") and "\n" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
def test_another_user_gets_nothing(served, program, tmp_path):
    memory = served()
    memory.socket.parent.chmod(0o755)
    memory.socket.chmod(0o777)
    code = "import mmap, sys; mmap.mmap(open(sys.executable, 'rb').fileno(), 4096, prot=mmap.PROT_READ)"
    with memory.start("/usr/bin/python3", "-c", code, user=65534, cwd="/") as reader:
        said = reader.communicate(timeout=60)[1]
    assert not memory.stats["mapped"]["connected"]
    assert reader.returncode != 0, said


def test_a_model_that_does_not_fit_into_memory_is_refused(tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 43)
    with pytest.raises(HbfError, match="holds the model in memory"):
        Service(Filesystem(tmp_path / "huge", TierSpec()).served)


@pytest.mark.parametrize("chunk", [1, 4095, 5000, 4 * MIB, -4096])
def test_a_chunk_is_whole_pages(chunk):
    with pytest.raises(SpecError, match="--chunk"):
        TierSpec(chunk_bytes=chunk)


def test_a_thread_gets_a_chunk_per_transfer_and_latency():
    assert expect.mapped_mbps(TierSpec(1000, 0.1, chunk_bytes=65536)) == pytest.approx(
        65536 / (65536 / 1000 + 100)
    )
    assert expect.mapped_mbps(TierSpec()) is None


def test_without_a_compiler_the_engine_is_refused_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "no-such-compiler" in build.build(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    with pytest.raises(HbfError, match=r"was not built.*install gcc"):
        library.twin.__wrapped__()


# hbf exec


def hbf(*line: object, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "hbf_fuse", *map(str, line)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        **options,
    )


def test_exec_runs_a_command_on_its_model(tiny_model, program):
    said = hbf("exec", "--mbps", 500, "--lat", 0.02, "--", program, "plain", tiny_model)
    assert (said.returncode, said.stdout) == (0, "right\n"), said.stderr
    assert "model.gguf: " in said.stderr and " due: " in said.stderr


def test_exec_exits_as_its_command_does(tiny_model):
    said = hbf("exec", "-m", tiny_model, "--", "sh", "-c", "exit 7")
    assert said.returncode == 7 and "mapped nothing of the model" in said.stderr
    assert hbf("exec", "-m", tiny_model, "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert hbf("exec", "-m", tiny_model, "--", "/no/such").returncode == 127


def test_exec_refuses_what_a_library_does_not_reach(tiny_model, static_program):
    said = hbf("exec", "-m", tiny_model, "--", static_program)
    assert said.returncode == 1 and "is a static program" in said.stderr and said.stderr.count("\n") == 1
    assert "use --inject" in said.stderr


def test_inject_reaches_a_static_program(tiny_model, static_program):
    said = hbf("exec", "--inject", "--mbps", 500, "--lat", 0.02, "--", static_program, "threads", tiny_model)
    assert (said.returncode, said.stdout) == (0, "right\n"), said.stderr
    assert "model.gguf: " in said.stderr and " due: " in said.stderr


def test_inject_exits_as_its_command_does_and_follows_what_a_shell_starts(tiny_model, static_program):
    said = hbf("exec", "--inject", "-m", tiny_model, "--", "sh", "-c", "exit 7")
    assert said.returncode == 7 and "mapped nothing of the model" in said.stderr
    line = "exec", "--inject", "-m", tiny_model, "--", "sh", "-c"
    assert hbf(*line, "kill -TERM $$").returncode == 128 + signal.SIGTERM
    said = hbf(*line, f"{static_program} plain {tiny_model} && exec {static_program} plain {tiny_model}")
    assert (said.returncode, said.stdout) == (0, "right\nright\n"), said.stderr


@pytest.mark.parametrize("options", [("--resident", "50%"), ("--on", "/")])
def test_inject_refuses_what_it_cannot_do(tiny_model, options):
    said = hbf("exec", "--inject", *options, "--", "true", tiny_model)
    assert said.returncode == 2 and "--inject" in said.stderr


@pytest.mark.parametrize("way", [way for way in WAYS.split() if way != "fork"])
def test_a_traced_program_that_does_odd_things_gets_the_right_bytes(served, static_program, tmp_path, way):
    memory = served()
    said = memory.run(library.injector(), static_program, way, memory.source, cwd=tmp_path, inject=True)
    assert said == (0, "right")
    mapped = memory.stats["mapped"]
    assert not mapped["altered"] and not mapped["failed"] and mapped["connected"] == 1
    if way not in ("unmap", "fixed", "remap", "write", "direct"):
        assert memory.file["complete"] and memory.stats["reads"] == CHUNKS
        assert mapped["proven_bytes"] >= SIZE


def test_a_traced_programs_child_has_no_mapping(served, static_program, tmp_path):
    memory = served()
    code, said = memory.run(
        library.injector(), static_program, "fork", memory.source, cwd=tmp_path, inject=True
    )
    assert code == 1 and "not so" in said


def test_seccomp_that_forbids_a_traced_program_userfaultfd_is_told(served, static_program):
    memory = served()
    code, said = memory.run(library.injector(), static_program, "seccomp", memory.source, inject=True)
    assert code == 125 and said.startswith("hbf: userfaultfd(2) is not permitted here") and "\n" not in said


def test_a_second_process_that_maps_is_refused(served, static_program, tmp_path):
    memory = served(spec=TierSpec(1, 1, chunk_bytes=64 << 10))
    both = f"{static_program} plain {memory.source} & {static_program} plain {memory.source}; wait"
    code, said = memory.run(library.injector(), "sh", "-c", both, cwd=tmp_path, inject=True)
    assert code == 125 and said == "hbf: a second process maps the model: --inject follows one"


def test_a_traced_program_ends_with_its_server_and_with_its_tracer(served, static_program):
    memory = served(spec=TierSpec(1, 1, chunk_bytes=64 << 10))
    with memory.start(library.injector(), static_program, "plain", memory.source, inject=True) as process:
        while not memory.stats["reads"]:
            assert process.poll() is None
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        child.wait(10)


def test_nobody_can_read_for_a_process_that_he_does_not_trace(served):
    memory = served()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as reader:
        reader.connect(str(memory.socket))
        reader.recv(1)
        reader.send(struct.pack("=II", 2, 1))
        assert reader.recv(1) == b"", "the server hangs up"


def test_exec_wants_a_model_or_a_mount_of_this_engine(mount, tiny_model):
    assert "is a GGUF" in hbf("exec", "--", "true").stderr
    point = mount(tiny_model)
    assert "is not of the memory engine" in hbf("exec", "--on", point, "--", "true").stderr
    said = hbf("exec", "--on", point, "--mbps", 5, "--", "true")
    assert said.returncode == 2 and "leave them out" in said.stderr


def test_exec_on_a_mount_and_the_mount_knows_its_files(mount, tiny_model, program):
    point = mount(tiny_model, 800, 0.02, engine="memory")
    for path in (point / "model.gguf", tiny_model):
        assert hbf("exec", "--on", point, "--", program, "plain", path).stdout == "right\n"
    stats = client.read_stats(point)
    assert stats["mapped"]["connected"] == 2 and not stats["mapped"]["altered"]
    assert client.read_spec(point)["engine"] == "memory"
    (file,) = stats["files"].values()
    assert file["complete"]
    client.send(point, {"mbps": 100})
    assert client.read_stats(point)["exchanges"] == 1
    with pytest.raises(HbfError):
        client.send(point, {"chunk": 4096})


def test_a_killed_server_leaves_no_socket(mount, tiny_model):
    point = mount(tiny_model, 800, 0.02, engine="memory")
    spec = client.read_spec(point)
    folder = Path(spec["memory_socket"]).parent
    os.kill(spec["pid"], signal.SIGKILL)
    end = time.monotonic() + 20
    while folder.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_another_tier_has_a_floor_of_its_own(mount, tiny_model, program):
    point = mount(tiny_model, 800, 0.02, engine="memory")
    assert hbf("exec", "--on", point, "--", program, "plain", tiny_model).stdout == "right\n"
    floors = []
    for lat in (0.02, 2):
        assert hbf("set", point, "--lat", lat).returncode == 0
        floors.append(client.read_stats(point)["floor"]["fixed_ns"]["0"])
    assert floors[0] > 0 and floors[1] > 0 and floors[0] != floors[1]


def test_a_chunk_needs_this_engine(mount, tiny_model, tmp_path):
    (tmp_path / "mnt").mkdir()
    said = hbf("mount", "--chunk", 4096, tiny_model, tmp_path / "mnt")
    assert said.returncode == 1 and "--engine memory" in said.stderr


@pytest.mark.parametrize("mode", ["mmap", "stream"])
def test_bench_measures_a_cell_with_this_engine(llama_bench, tiny_model, tmp_path, mode):
    line = ["-p", 4, "-n", 4, "-t", 2, "--mbps", 500, "--lat", 0.02, "--mode", mode, "--engine", "memory"]
    if mode == "stream":
        line += ["--resident", "24M"]
    said = hbf("bench", tiny_model, *line, "-o", tmp_path / "results", "--json")
    assert not said.returncode, said.stderr
    run = json.loads(said.stdout)
    assert run["cell"]["engine"] == "memory" and run["tier_stats"]["mapped"]["connected"] == 1
    assert run["metrics"]["model_mbps"] > 0 and not run["tier_stats"]["mapped"]["altered"]


def test_mode_stage_is_refused(llama_bench, tiny_model, tmp_path):
    said = hbf("bench", tiny_model, "--mode", "stage", "--engine", "memory", "-o", tmp_path / "results")
    assert said.returncode == 1 and "mode mmap or stream" in said.stderr


# What this machine can do


def test_doctor_knows_the_engine():
    lines = {line.name: line for line in doctor.examine(doctor.collect())}
    assert lines["memory engine"].state == "ok" and "works" in lines["memory engine"].message


@pytest.mark.parametrize(
    ("kernel", "why", "remedy"),
    [
        ("5.10.0", "this kernel has no minor faults", "Linux 5.14"),
        ("6.1.0", "userfaultfd(2) is not permitted here", "seccomp"),
        ("6.1.0", "the memory engine was not built", "install gcc"),
    ],
)
def test_doctor_says_why_the_engine_does_not_work(kernel, why, remedy):
    facts = dataclasses.replace(
        doctor.collect(), kernel=kernel, container=True, fault_ns=HbfError(why, "install gcc")
    )
    line = serving.memory_engine(facts)
    assert line.state == "warn" and why in line.message and remedy in line.remedy


def test_profiles_say_which_engine_serves_them():
    known = {each["name"]: each["engine"] for each in json.loads(hbf("profile", "list", "--json").stdout)}
    assert known["sata-ssd"] == "kernel" and known["hbf-gen3"] is None
    assert profile.engine_of(TierSpec(7000, 0.06)) == "memory"
    assert profile.engine_of(TierSpec(1e6)) == ""


def test_a_grid_refuses_modes_that_map_nothing():
    with pytest.raises(HbfError, match="mode mmap or stream"):
        grid.from_fields({"engine": "memory", "mode": ["mmap", "stage"]})
    assert grid.from_fields({"engine": "memory", "mode": ["mmap", "stream"]}).engine == "memory"
