"""Traces, and their attribution to tensors."""

import fcntl
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse import gguf, reaper
from hbf_fuse.errors import HbfError
from hbf_fuse.gguf.reader import Tensor
from hbf_fuse.host import mountinfo
from hbf_fuse.mount import client
from hbf_fuse.observe.bounds import RING_RECORDS
from hbf_fuse.observe.ring import Ring
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import attribution, chains
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.trace import RECORD, Read, Trace, TraceFile, header_line, is_being_written

ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])

DATA = Path(__file__).parent / "data"
HEADER = {"tiers": {"hbf": {}}, "files": {"2": {"path": "model.gguf", "size": 1000}}}
TIERS = b'"tiers": {"a": {}, "b": {}, "c": {}, "d": {}}'
TENSORS = [
    Tensor("token_embd.weight", (10, 10), "F32", 100, 100),
    Tensor("blk.0.attn_q.weight", (10, 10), "F32", 200, 300),
    Tensor("blk.1.ffn_up_exps.weight", (10, 10, 4), "F32", 520, 400),
]


def read(arrival=0, offset=0, nbytes=100, done=None, reader=1, tier=0):
    return Read(arrival, arrival, done if done is not None else arrival + 10, offset, nbytes, reader, 2, tier)


def parsed(records):
    return [Read(*fields) for fields in RECORD.iter_unpack(records)]


def recorded(path, reads):
    ring = Ring()
    file = TraceFile(path, HEADER, ring)
    for one in reads:
        ring.add(*one)
    file.close()
    assert not file.stopped
    return ring


def test_what_is_recorded_is_read_back(tmp_path):
    reads = [read(arrival=place, offset=place * 10, reader=(1 << 22) - 1, tier=3) for place in range(50)]
    ring = recorded(tmp_path / "trace", reads)
    trace = Trace.parse((tmp_path / "trace").read_bytes().replace(b'"tiers": {"hbf": {}}', TIERS))
    assert list(trace) == reads == parsed(ring.since(0)[0])
    assert parsed(ring.since(48)[0]) == reads[48:] and ring.since(50) == (b"", 0)
    assert attribution.of_files(trace, ["model.gguf"]) == reads
    assert attribution.of_files(trace, ["other.gguf"]) == []


def test_the_ring_keeps_the_newest_and_counts_what_it_lost():
    ring = Ring()
    for place in range(RING_RECORDS + 5):
        ring.add(*read(arrival=place))
    kept = Trace.parse(header_line(HEADER) + ring.since(0)[0])
    # The oldest record may be overwritten at any moment.
    assert [each.arrival_ns for each in kept] == list(range(6, RING_RECORDS + 5))
    assert ring.since(0)[1] == 6 and ring.since(4)[1] == 2
    records, lost = ring.since(RING_RECORDS + 3)
    assert [each.arrival_ns for each in parsed(records)] == [RING_RECORDS + 3, RING_RECORDS + 4] and not lost


def test_a_trace_that_is_not_a_file_is_refused_at_the_start():
    with pytest.raises(OSError, match="not a trace"):
        TraceFile(Path("/dev/full"), HEADER, Ring())


def test_a_disk_that_becomes_full_ends_the_file_and_nothing_else(tmp_path):
    script = f"""
import resource, signal, sys
from pathlib import Path
from hbf_fuse.observe.bounds import RING_RECORDS
from hbf_fuse.observe.ring import Ring
from hbf_fuse.traces.trace import TraceFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
ring = Ring()
file = TraceFile(Path({str(tmp_path / "trace")!r}), {HEADER!r}, ring)
for place in range(5000):
    ring.add(place, place, place + 1, 0, 100, 1, 2, 0, 0)
file.close()
assert ring.count == 5000 and "large" in file.stopped, file.stopped
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("content", [b"", b"junk", b"[]\n", b'{"format": "other"}\n', b"\x00" * 5000])
def test_a_file_that_is_not_a_trace_is_refused(content):
    with pytest.raises(ValueError):
        Trace.parse(content)


def test_a_record_that_was_cut_off_is_left_out():
    content = header_line(HEADER) + RECORD.pack(*read()) + RECORD.pack(*read())[:-3]
    assert len(Trace.parse(content)) == 1


def test_a_read_is_divided_among_its_tensors_by_bytes():
    shares = attribution.attribute([read(offset=0, nbytes=600, done=600)], ["hbf"], TENSORS, [])
    assert {name: share.nbytes for name, share in shares.tensors.items()} == {
        attribution.HEADER: 100 + 20,
        "token_embd.weight": 100,
        "blk.0.attn_q.weight": 300,
        "blk.1.ffn_up_exps.weight": 80,
    }
    assert shares.tensors["blk.0.attn_q.weight"].stall_ns == 300
    assert set(shares.layers) == {attribution.HEADER, "token_embd", "0", "1"}


def test_experts_are_distinguished():
    shares = attribution.attribute([read(offset=570, nbytes=200)], ["hbf"], TENSORS, [])
    assert {expert: share.nbytes for (_, expert), share in shares.experts.items()} == {0: 50, 1: 100, 2: 50}


def test_phases_and_tokens_go_by_arrival():
    phases = [Phase("prefill", 8, 1000, 2000), Phase("decode", 4, 3000, 7000)]
    reads = [read(arrival=time) for time in (10, 1000, 2500, 3000, 3999, 4000, 6999, 7500)]
    shares = attribution.attribute(reads, ["hbf"], TENSORS, phases)
    assert {name: share.reads for name, share in shares.phases.items()} == {
        "load": 1,
        "prefill": 2,
        "decode": 5,
    }
    assert {token: share.reads for token, share in shares.tokens.items()} == {0: 2, 1: 1, 3: 1}


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 500)), max_size=20))
def test_no_byte_is_lost_or_counted_twice(ranges):
    reads = [read(offset=offset, nbytes=nbytes) for offset, nbytes in ranges]
    shares = attribution.attribute(reads, ["hbf"], TENSORS, [])
    assert sum(share.nbytes for share in shares.tensors.values()) == sum(each.nbytes for each in reads)
    layers, _, rows = attribution.heat(reads, TENSORS, 5)
    named = sum(share.nbytes for name, share in shares.tensors.items() if name != attribution.HEADER)
    assert sum(map(sum, rows)) == named and len(rows) in (0, len(layers))


def test_queue_depth_counts_the_arriving_read():
    reads = [read(0, done=100), read(10, done=50), read(60, done=70), read(200, done=300)]
    assert attribution.depths(reads) == {1: 2, 2: 2}


def test_a_traced_mount_records_every_read(mount, noise, tmp_path):
    point = mount(noise(3 << 20), mbps=900)
    (point / "model.gguf").read_bytes()
    trace = client.read_trace(point)
    assert sum(each.nbytes for each in trace if each.nbytes >= 1 << 17) >= 3 << 20
    assert all(each.arrival_ns <= each.done_ns for each in trace)


def test_trace_summary_of_a_file_and_of_a_live_mount(mount, tiny_model, tmp_path):
    point = mount(tiny_model)
    with (point / "model.gguf").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while file.read(1 << 20):
            pass
    (tmp_path / "kept.trace").write_bytes((point / ".hbf" / "trace").read_bytes())
    for source in (point, tmp_path / "kept.trace"):
        line = [sys.executable, "-m", "hbf_fuse", "trace", "summary", str(source)]
        said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout
        assert "token_embd" in said and "load" in said and "reads in flight" in said
    with (tmp_path / "kept.trace").open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stderr
        assert "a mount still writes" in said
    broken = [sys.executable, "-m", "hbf_fuse", "trace", "summary", str(tiny_model)]
    ended = subprocess.run(broken, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1 and "not a trace" in ended.stderr and "Traceback" not in ended.stderr


def test_reads_of_other_files_are_not_attributed_to_the_model(tiny_model, tmp_path):
    described = gguf.read(tiny_model)
    files = {"2": {"path": "a/tiny.gguf", "size": described.size}, "3": {"path": "b.gguf", "size": 5}}
    records = RECORD.pack(*read()) + RECORD.pack(*read()._replace(ino=3))
    trace = Trace({"tiers": {"hbf": {}}, "files": files}, records)
    assert [each.ino for each in attribution.of_model(trace, described)] == [2]
    with pytest.raises(HbfError, match="not what was served"):
        attribution.of_model(Trace({"tiers": {}, "files": {"3": files["3"]}}, records), described)


def test_the_first_pass_over_two_files_is_over_when_both_have_come():
    reads = [
        read(arrival=at, offset=at * 4096, nbytes=4096, done=at + 5)._replace(ino=ino)
        for ino in (2, 3)
        for at in (0, 1)
    ]
    assert chains.first_pass_ns(reads, [10, 20, 30, 40]) == 40


def test_the_run_of_another_trace_is_refused(tmp_path):
    document = json.loads((DATA / "run-mmap.json").read_text())
    recorded(tmp_path / "trace", [read(arrival=10)])
    document["tier_stats"].update(first_arrival_ns=1000, last_done_ns=2000)
    name = tmp_path / f"{document['cell']['name']}.json"
    name.write_text(json.dumps(document))
    line = [
        sys.executable,
        "-m",
        "hbf_fuse",
        "trace",
        "replay",
        tmp_path / "trace",
        "--mbps",
        "5",
        "--run",
        name,
    ]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1 and "is not the run that this trace is of" in said.stderr


def test_a_read_of_two_tiers_waits_once():
    whole = [read(10, 100, 300, tier=0), read(10, 400, 100, tier=1)]
    reads = [*whole, read(10, 0, 100, reader=2)]
    shares = attribution.attribute(reads, ["hbf", "slow"], TENSORS, [])
    assert shares.phases["load"].to_dict() == {"bytes": 500, "reads": 2, "stall_seconds": 20e-9}
    assert shares.tiers["slow", "blk.0.attn_q.weight"].stall_ns == pytest.approx(10 * 100 / 400)
    assert attribution.sizes(reads) == {100: 1, 400: 1}
    assert max(attribution.depths(reads)) == 2
    assert chains.elsewhere(reads, [], TierSpec(latency_ms=1))["reads"] == 2
    assert [(one.offset, one.nbytes) for one in chains.Chains(reads).reads] == [(100, 400), (0, 100)]


def traced(source, point, file, engine):
    point.mkdir()
    line = [sys.executable, "-P", "-m", "hbf_fuse", "mount", "--engine", engine, "--trace", str(file)]
    subprocess.run([*line, str(source), str(point)], check=True, timeout=60, capture_output=True)


def until(true, seconds=20):
    give_up = time.monotonic() + seconds
    while not true() and time.monotonic() < give_up:
        time.sleep(0.02)
    assert true()


def read_past_the_cache(file, nbytes):
    """One read of the tier."""
    fd = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [mmap.mmap(-1, nbytes)], 0)
    finally:
        os.close(fd)


@ENGINES
def test_a_trace_that_is_rotated_by_copytruncate_goes_on_with_a_header(noise, tmp_path, engine):
    point, file, copy = tmp_path / "mnt", tmp_path / "reads.trace", tmp_path / "reads.trace.1"
    traced(noise(100_000), point, file, engine)
    try:
        for _ in range(3):
            read_past_the_cache(point / "model.gguf", 4096)
            until(lambda: len(Trace.read(file)) > 0)
            copy.write_bytes(file.read_bytes())
            os.truncate(file, 0)
            until(lambda: file.stat().st_size > 0)
        assert len(Trace.read(copy)) == 1
        read_past_the_cache(point / "model.gguf", 4096)
    finally:
        subprocess.run([sys.executable, "-P", "-m", "hbf_fuse", "umount", str(point)], check=True, timeout=60)
    assert [read.nbytes for read in Trace.read(file)] == [4096]


@ENGINES
def test_the_newest_reads_are_in_the_trace_of_a_server_that_was_killed(noise, tmp_path, engine):
    point, file = tmp_path / "mnt", tmp_path / "reads.trace"
    traced(noise(100_000), point, file, engine)
    server = json.loads((point / ".hbf/spec.json").read_text())["pid"]
    for _ in range(50):
        read_past_the_cache(point / "model.gguf", 4096)
    os.kill(server, signal.SIGKILL)
    until(lambda: mountinfo.find(point) is None)
    until(lambda: not is_being_written(file))
    # The last one's reply had come, but the server may have been killed before it recorded that.
    assert len(Trace.read(file)) in (49, 50)


def test_what_a_watcher_finds_half_written_is_completed(tmp_path):
    ring = Ring()
    for place in range(5):
        ring.add(place + 1, place + 2, place + 3, 0, 4096, 7, 2, 0, 0)
    whole = header_line(HEADER) + ring.since(0)[0]
    ring.note(2, len(whole) - 3 * RECORD.size)
    for there in (len(whole) - 3 * RECORD.size, len(whole) - RECORD.size - 5, len(whole)):
        file = tmp_path / "reads.trace"
        file.write_bytes(whole[:there])
        with file.open("ab") as opened:
            reaper._write_newest(opened.fileno(), ring.descriptor())
        assert file.read_bytes() == whole
    file.write_bytes(b"")
    with file.open("ab") as opened:
        reaper._write_newest(opened.fileno(), ring.descriptor())
    assert file.read_bytes() == b""


def test_a_trace_whose_header_is_gone_is_recognised(tmp_path):
    records = RECORD.pack(5, 6, 9, 0, 4096, 1, 2, 0, 0) * 3
    for content in (records, records[:-7]):
        with pytest.raises(ValueError, match="its header is gone"):
            Trace.parse(content)
    file = tmp_path / "reads.trace"
    file.write_bytes(records)
    line = [sys.executable, "-P", "-m", "hbf_fuse", "trace", "summary", str(file)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1 and "its header is gone" in said.stderr and said.stderr.count("\n") == 1
