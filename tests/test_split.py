"""A split model is one model everywhere: mounted, measured, traced, placed and judged as one."""

import shutil
import subprocess
import sys

import pytest
from splitting import split_gguf

from hbf_fuse import gguf
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import residency
from hbf_fuse.models import split
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.sweep import measuring, workspace
from hbf_fuse.sweep.cell import Cell, ModelFile
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import attribution
from hbf_fuse.traces.trace import Trace
from hbf_fuse.workload.llama import BenchOptions

FAST = TierSpec(400, 0.1)


@pytest.fixture(scope="session")
def parts(tiny_model, tmp_path_factory):
    return split_gguf(tiny_model, tmp_path_factory.mktemp("split"), 3)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("a-00001-of-00003.gguf", 1),
        ("a-00003-of-00003.gguf", 3),
        ("a-00004-of-00003.gguf", None),
        ("a-00000-of-00003.gguf", None),
        ("a-1-of-3.gguf", None),
        ("a.gguf", None),
    ],
)
def test_a_part_is_known_by_its_name(name, number):
    part = split.part_name(name)
    assert (part and part.number) == number


def test_missing_parts_are_named(parts, tmp_path):
    shutil.copy(parts[1], tmp_path)
    with pytest.raises(HbfError, match="part 2 of 3, and parts 1 and 3 are not beside it; get all parts"):
        split.parts_of(tmp_path / parts[1].name)
    shutil.copy(parts[0], tmp_path)
    point = tmp_path / "mnt"
    point.mkdir()
    line = [sys.executable, "-m", "hbf_fuse", "mount", str(tmp_path / parts[0].name), str(point)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1 and "part 1 of 3, and part 3 is not beside it" in said.stderr


def test_the_parts_together_are_the_whole_model(tiny_model, parts):
    whole, divided = gguf.read(tiny_model), gguf.read_whole(parts)
    assert [(each.name, each.nbytes) for each in divided.tensors] == [
        (each.name, each.nbytes) for each in whole.tensors
    ]
    assert divided.architecture == whole.architecture
    content = b"".join(path.read_bytes() + bytes(-path.stat().st_size % 4096) for path in parts)
    original = tiny_model.read_bytes()
    for one, other in zip(whole.tensors, divided.tensors, strict=True):
        assert content[other.offset : other.offset + 64] == original[one.offset : one.offset + 64], other.name


def test_a_part_of_another_model_is_refused(parts, tmp_path):
    for number, path in enumerate(parts):
        shutil.copy(parts[0] if number == 1 else path, tmp_path / path.name)
    with pytest.raises(HbfError, match="is not part 2 of 3"):
        gguf.read_whole(split.parts_of(tmp_path / parts[2].name))


@pytest.mark.parametrize("named", [0, 2])
def test_any_part_mounts_all_under_their_own_names(parts, tmp_path, named):
    with child.mounted(MountConfig(parts[named], tmp_path, TierSpec())) as mount:
        assert sorted(path.name for path in mount.iterdir()) == [path.name for path in parts]
        for path in parts:
            assert (mount / path.name).read_bytes() == path.read_bytes()
        (name, file), *others = client.read_stats(mount)["files"].items()
    assert (name, others) == (parts[0].name, [])
    assert file["complete"] and file["staging"]["verdict"]


def test_one_verdict_counts_the_bytes_of_all_parts(parts):
    fs = Filesystem(parts[0], FAST)
    nbytes = [path.stat().st_size for path in parts]
    for place, size in enumerate(nbytes):
        at = 0
        while at < size:
            read = min(1 << 20, size - at)
            due = fs.served.pacer.admit(place, at, read, 1, True, 10**9)
            fs.served.pacer.complete(place, at, read, 1, True, 10**9, due, due, due)
            at += read
    (file,) = fs.hidden.stats_document()["files"].values()
    padding = sum(-size % 4096 for size in nbytes[:-1])
    assert file["complete"] and file["arrived_bytes"] == sum(nbytes) + padding
    assert file["staging"]["model_mbps"] == pytest.approx(FAST.bandwidth_mbps, rel=0.02)


@pytest.mark.parametrize("mode", ["mmap", "stage", "stream", "cgroup"])
def test_every_mode_reads_all_of_a_split_model(parts, mode):
    spec = TierSpec(400) if mode == "cgroup" else FAST
    if mode == "cgroup" and residency.drop(*parts) is None:
        pytest.skip("needs a file system whose pages can be seen")
    model = ModelFile.of(parts[1])
    layout = Layout(resident_bytes=model.size // 2 if mode == "stream" else None, policy="pin")
    cell = Cell(model, spec, mode=mode, bench=BenchOptions(8, 4, 1), layout=layout)
    with workspace.lent() as lent:
        try:
            run = measuring.run(cell, lent)
        except HbfError as error:
            if mode == "cgroup":
                pytest.skip(f"no io limit here: {error}")
            raise
        assert not list(lent.mountpoint.parent.glob("*.gguf"))
    assert run.cell.model.name == parts[0].name and run.cell.model.size == model.size
    assert run.metrics.tg > 0 and run.metrics.stage_seconds > 0
    assert str(parts[0].parent) not in str(run.to_dict())
    if mode in ("mmap", "stage"):
        assert run.metrics.tier_bytes_read == model.size


def test_reads_of_a_placed_split_model_are_its_tensors(parts, tmp_path):
    mount, trace = tmp_path / "mnt", tmp_path / "trace"
    mount.mkdir()
    layout = Layout(place=(r"blk\.0\.=dram",))
    with child.mounted(MountConfig(parts[0], mount, FAST, layout=layout, trace=trace)) as point:
        for path in parts:
            (point / path.name).read_bytes()
    recorded, model = Trace.parse(trace.read_bytes()), gguf.read_whole(parts)
    shares = attribution.attribute(
        attribution.of_model(recorded, model), list(recorded.header["tiers"]), model.tensors, []
    )
    for tensor in model.tensors:
        # The kernel may drop a page before it is used, and read it again.
        assert 0 <= shares.tensors[tensor.name].nbytes - tensor.nbytes <= 16 * 4096
    # The header, with the vocabulary, is in DRAM, too.
    placed = sum(
        share.nbytes
        for (tier, name), share in shares.tiers.items()
        if tier == "dram" and name != attribution.HEADER
    )
    wanted = sum(tensor.nbytes for tensor in model.tensors if tensor.name.startswith("blk.0."))
    assert placed == pytest.approx(wanted, abs=64 * 4096)
