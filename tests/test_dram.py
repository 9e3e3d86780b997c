"""How much DRAM in front of the tier, from one recording (hbf_fuse/traces/dram.py)."""

import json
import random
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf.reader import Tensor
from hbf_fuse.pacing.resident import Resident
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.dram import POLICIES, Curve, Recording, Uses
from hbf_fuse.traces.trace import Read

PAGE, MIB = 4096, 1 << 20
MS = 1_000_000


def reads_of(ranges, took_ns=MS, think_ns=MS):
    """One reader, one read after the other."""
    now, found = 0, []
    for offset, nbytes in ranges:
        found.append(Read(now, now + took_ns, now + took_ns, offset, nbytes, 7, 1, 0))
        now += took_ns + think_ns
    return found


def in_cycle(size, tokens, step=MIB):
    return [(at, min(step, size - at)) for _ in range(tokens) for at in range(0, size, step)]


def missed(policy, reads, budget):
    uses = Uses(reads)
    cache = POLICIES[policy](uses, budget)
    return [sum(uses.units[unit][1] for unit in units if not cache.use(unit)) for units in uses.used]


def curve_of(reads, tokens, compute_seconds=0.01, tensors=(), spec=None, begin=0):
    decode = Phase("decode", tokens, reads[begin].arrival_ns, reads[-1].done_ns + MS)
    recording = Recording(reads, tensors, decode, [spec or TierSpec(100)], compute_seconds)
    return Curve(recording, lambda tensor: tensor.name)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=60),
    st.sampled_from(sorted(POLICIES)),
)
def test_every_byte_is_in_one_unit_and_a_cache_without_limit_misses_each_once(ranges, policy):
    reads = reads_of([(first * PAGE, count * PAGE) for first, count in ranges])
    uses = Uses(reads)
    assert all(first + nbytes <= other for (first, nbytes), (other, _) in pairwise(uses.units))
    for read, units in zip(uses.reads, uses.used, strict=True):
        assert sum(uses.units[unit][1] for unit in units) == read.nbytes
    pages = {page for first, count in ranges for page in range(first, first + count)}
    assert sum(missed(policy, reads, 1 << 40)) == len(pages) * PAGE


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 40), min_size=20, max_size=300), st.integers(5, 30))
def test_no_policy_reads_less_than_the_optimum(units, kept):
    reads = reads_of([(unit * 65536, 65536) for unit in units])
    budget = (4 << 20) + kept * 65536
    best = sum(missed("opt", reads, budget))
    assert all(best <= sum(missed(policy, reads, budget)) for policy in POLICIES)


def test_the_optimum_is_belady_s():
    """A textbook string, five frames of a page with bypass: by hand."""
    units = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    reads = reads_of([(unit * 65536, 65536) for unit in units])
    # Three frames: 7 faults without bypass; with it no more.
    assert sum(missed("opt", reads, 3 * 65536)) == 7 * 65536


def test_a_cycle_larger_than_dram_leaves_nothing_to_lru_and_fifo_but_to_pin():
    size, budget = 60 * MIB, 40 * MIB
    reads = reads_of(in_cycle(size, 4))
    for policy in ("lru", "fifo"):
        assert sum(missed(policy, reads, budget)) == 4 * size
    # pin keeps the budget less its window of 10 MiB.
    assert sum(missed("pin", reads, budget)) == size + 3 * (size - 30 * MIB)
    best = sum(missed("opt", reads, budget))
    assert best == pytest.approx(size + 3 * (size - budget), rel=0.01)


@pytest.mark.parametrize("policy", ["fifo", "pin"])
def test_the_policies_of_a_mount_are_the_mount_s_own(policy):
    """The same uses, through what a mount counts its pages with."""
    size, budget = 64 * MIB, 32 * MIB
    rng = random.Random(3)
    ranges = in_cycle(size, 1) + [(rng.randrange(0, 63) * MIB, MIB) for _ in range(400)]
    reads = reads_of(ranges)
    resident = Resident(budget, policy, [size])
    there, real = set[int](), 0
    for offset, nbytes in ranges:
        pages = set(range(offset // PAGE, (offset + nbytes) // PAGE))
        gone = sorted(pages - there)
        for page in gone:
            resident.coming(0, page * PAGE, PAGE)
            resident.came(0, page * PAGE, PAGE)
        there |= pages
        while resident.next_drop():
            there -= set(range(resident.drop_first, resident.drop_end))
        real += len(gone) * PAGE
    assert sum(missed(policy, reads, budget)) == pytest.approx(real, rel=0.02)


def test_tokens_a_second_are_compute_and_the_tier_and_what_reads_cost_besides():
    """100 MB/s, 30 MB a token in reads that wait for each other: 300 ms, and 10 ms of compute."""
    size = 30_000_000 // PAGE * PAGE
    ranges = in_cycle(size, 4, step=size // 10 // PAGE * PAGE)
    took = round(size / 10 / 100e6 * 1e9)
    reads = reads_of(ranges, took_ns=took, think_ns=MS)
    count = len(ranges)
    curve = curve_of(reads, tokens=4, compute_seconds=0.01)
    point = curve.point("lru", 20 << 20)
    assert point.read == point.used == pytest.approx(size)
    # A read costs 1 ms of think time; of those of a token 10 ms are compute.
    assert 1 / point.tg == pytest.approx(0.01 + 0.3 + count / 4 * 0.001 - 0.01, rel=0.01)
    assert curve.point("opt", 1 << 30).read < point.read / 2


def test_nothing_resident_is_needed_to_know_what_is_used():
    reads = reads_of(in_cycle(30 * MIB, 1))
    decode = Phase("decode", 4, reads[-1].done_ns + MS, reads[-1].done_ns + 100 * MS)
    with pytest.raises(HbfError, match="--resident 20M"):
        Curve(Recording(reads, (), decode, [TierSpec(100)], 0.01), lambda tensor: tensor.name)


def test_groups_and_experts_add_up():
    """Two tensors: one of four experts, of which only the first and the last are used."""
    each = 2 * MIB
    tensors = (
        Tensor("blk.0.attn_q.weight", (1024, 1024), "F16", 0, 4 * MIB),
        Tensor("blk.0.ffn_up_exps.weight", (1024, 1024, 4), "F16", 4 * MIB, 4 * each),
    )
    token = [(0, 4 * MIB), (4 * MIB, each), (4 * MIB + 3 * each, each)]
    curve = curve_of(reads_of(token * 5), tokens=5, tensors=tensors)
    point = curve.point("lru", 1 << 30)
    assert set(point.by_expert) == {("0", 0), ("0", 3)}
    assert point.by_expert["0", 3][1] == pytest.approx(each)
    assert point.by_group["blk.0.attn_q.weight"] == pytest.approx((4 * MIB / 5, 4 * MIB))
    assert sum(used for _, used in point.by_group.values()) == pytest.approx(point.used)
    assert curve.expert_bytes["0", 1] == each


def test_a_real_recording(tmp_path, tiny_model, llama_bench):
    """From `hbf bench --trace` to the curve."""
    trace = tmp_path / "run.trace"
    tokens = ["-p", "0", "-n", "4", "--mbps", "1500", "--trace", trace, "-o", tmp_path / "out"]
    hbf("bench", tiny_model, "--mode", "stream", "--resident", "20M", "--policy", "fifo", *tokens)
    (run,) = (tmp_path / "out/runs").glob("*.json")
    wanted = ["--resident", "50%,100%", "--policy", ",".join(POLICIES), "--json"]
    points = json.loads(hbf("trace", "replay", trace, "--run", run, *wanted))["points"]
    assert len(points) == 2 * len(POLICIES)
    assert all(point["tg"] > 0 for point in points)
    half = {point["policy"]: point["bytes_per_token"] for point in points[: len(POLICIES)]}
    assert half["opt"] == min(half.values())
    assert half["pin"] < half["fifo"]


def hbf(*line):
    command = [sys.executable, "-P", "-m", "hbf_fuse", *map(str, line)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_no_token_is_faster_than_its_computing():
    """Computing went on under reads in the recording; an infinitely fast tier does not undo it."""
    reads = reads_of(in_cycle(40 * MIB, 4), think_ns=0)
    for spec in (TierSpec(1e6), TierSpec()):
        for cut_ns in (0, 3 * MS):
            decode = Phase("decode", 4, 0, reads[-1].done_ns - cut_ns)
            curve = Curve(Recording(reads, (), decode, [spec], 0.02), lambda tensor: tensor.name)
            assert 0 < curve.point("lru", 20 << 20).tg <= 50 + 1e-9


def test_reads_of_several_tiers_are_refused():
    reads = reads_of(in_cycle(30 * MIB, 2))
    reads[3] = reads[3]._replace(tier=1)
    with pytest.raises(HbfError, match="several tiers"):
        curve_of(reads, 2)


def test_a_recording_with_dram_is_refused(tmp_path, tiny_model, llama_bench):
    """Pinned pages were never seen to be used."""
    trace = tmp_path / "run.trace"
    tokens = ["-p", "0", "-n", "2", "--mbps", "2000", "--trace", trace, "-o", tmp_path / "out"]
    hbf("bench", tiny_model, "--mode", "stream", "--resident", "75%", *tokens)
    (run,) = (tmp_path / "out/runs").glob("*.json")
    line = [sys.executable, "-P", "-m", "hbf_fuse", "trace", "replay", str(trace), "--run", str(run)]
    done = subprocess.run([*line, "--resident", "50%"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "was in DRAM" in done.stderr
    for wrong in (["--resident", "1%"], ["--resident", "50%", "--policy", "best"], ["--policy", "lru"]):
        assert subprocess.run([*line, *wrong], capture_output=True, check=False).returncode == 2
