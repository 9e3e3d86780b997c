"""Large sources of which little is read: memory follows what is read, and every byte is counted once."""

import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse import compiled
from hbf_fuse.fs.placement import DRAM, MAIN, PAGE, Layout, Placement, Rule
from hbf_fuse.gguf.reader import GgufFile, Tensor
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe.counters import Counters
from hbf_fuse.pacing.coverage import Coverage
from hbf_fuse.pacing.credit import Credit
from hbf_fuse.pacing.idle import Idle
from hbf_fuse.pacing.pages import Pages
from hbf_fuse.pacing.words import Words
from hbf_fuse.tier import TierSpec

ENGINES = ("kernel", "fusepy")
"""The memory engine holds its model in memory."""

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
LARGEST = (16 << 40) - PAGE
"""Of a file on ext4."""

MOST_RESIDENT = 60_000_000

places = st.one_of(st.integers(0, 200), st.integers(0, (1 << 52) - 1))


@given(st.lists(st.tuples(places, st.sampled_from([0, 0, 1, (1 << 64) - 1])), max_size=60))
def test_words_equal_a_dict(puts):
    words, known = Words(1 << 52), {}
    for at, word in puts:
        assert words.put(at, word)
        known[at] = word
        assert words.get(at) == word
    assert all(words.get(at) == word for at, word in known.items())
    assert all(words.get(at ^ 1) == known.get(at ^ 1, 0) for at in known)
    assert all(words.put(at, 0) for at in known)
    assert not any(words.get(at) for at in known)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 4096, 4097, 1 << 62])
def test_the_last_word_can_be_set(count):
    words = Words(count)
    for at in {0, count // 2, count - 1} if count else ():
        assert words.put(at, at + 1)
        assert words.get(at) == at + 1


def alone(code: str) -> str:
    """The output of a fresh interpreter."""
    line = [sys.executable, "-c", code]
    folder = Path(compiled.PACKAGE).parent
    return subprocess.run(
        line, cwd=folder, capture_output=True, text=True, check=True, timeout=100
    ).stdout.strip()


WITHIN = """
import resource
from hbf_fuse.pacing.pages import Pages
from hbf_fuse.pacing.resident import MIN_BYTES, Resident
from hbf_fuse.pacing.words import Words

def field(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
"""


@pytest.mark.skipif(bool(compiled.why_not()), reason=str(compiled.why_not()))
def test_words_that_are_zero_again_take_no_memory():
    grown = alone(
        f"""{WITHIN}
words = Words(1 << 32)
before = field("VmRSS")
for round in range(40):
    for at in range(20_000):
        words.put(at * 65_536 + round * 64, 1)
    for at in range(20_000):
        words.put(at * 65_536 + round * 64, 0)
print(field("VmRSS") - before)
"""
    )
    # 20,000 leaves and the nodes above them, and not 40 times as many.
    assert int(grown) < 40_000


@pytest.mark.skipif(bool(compiled.why_not()), reason=str(compiled.why_not()))
def test_pages_without_memory_to_note_them_have_not_come_and_overfill_the_budget():
    said = alone(
        f"""{WITHIN}
pages, resident = Pages(1 << 48), Resident(1 << 50, "fifo", [1 << 60])
most = field("VmSize") * 1024 + (16 << 20)
before = resident.is_overfull()
resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
at = 0
while pages.add(at, at + 1):
    at += 1 << 18
for _ in range(100):
    resident.coming(0, at * 4096, 4096)
    resident.came(0, at * 4096, 4096)
    at += 1 << 18
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(at > 0, before, resident.is_overfull(), pages.has(0), pages.add(0, 2))
"""
    )
    assert said == "True False True True 1"


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=20), st.integers(0, 1 << 40))
def test_pages_equal_a_set(ranges, base):
    known: set[int] = set()
    pages = Pages(base + 600)
    for first, length in ranges:
        fresh = set(range(first, first + length)) - known
        assert pages.add(base + first, base + first + length) == len(fresh)
        known |= fresh
    assert [page for page in range(600) if pages.has(base + page)] == sorted(known)


def test_a_large_model_is_complete_with_its_last_byte_and_not_before():
    size = 64 * GIB - 100
    coverage = Coverage([PAGE, size, PAGE], Counters(), Credit(), Idle())
    pieces = list(range(0, size, 512 * MIB))
    random.Random(1).shuffle(pieces)
    arrived = 0
    for offset in pieces:
        for begin, end in ((offset, offset + 300 * MIB + 1), (offset + 300 * MIB, offset + 512 * MIB)):
            assert not coverage.is_complete(1)
            nbytes = min(end, size) - begin
            coverage.begin(1, 1, 1, 0, 1)
            coverage.add(1, begin, nbytes, 1, 1, 1, 1)
        arrived += min(512 * MIB, size - offset)
        assert coverage.arrived_bytes(1) == arrived
    assert coverage.is_complete(1) and coverage.begun() == [1]


# Placement


def painted(tensors, size, number_of):
    """A tier for each page, as placement did it once."""
    pages = bytearray(-(-size // PAGE))
    for tensor in sorted(tensors, key=lambda tensor: -number_of(tensor)):
        first, end = tensor.offset // PAGE, -(-(tensor.offset + tensor.nbytes) // PAGE)
        pages[first:end] = bytes([number_of(tensor)]) * (end - first)
    return list(pages)


@given(st.lists(st.tuples(st.integers(0, 3 * PAGE), st.integers(0, 5000), st.integers(0, 2)), max_size=12))
def test_regions_equal_a_tier_for_each_page(parts):
    at, tensors = 1000, []
    for place, (nbytes, gap, number) in enumerate(parts):
        tensors.append(Tensor(f"{number}-{place}", (1,), "F32", at + gap, nbytes))
        at += gap + nbytes
    names = [DRAM, "slow", MAIN]
    model = GgufFile(Path("made"), at + 3000, 3, {}, tensors, 1000)
    rules = [Rule.parse(text) for text in ("^0=dram", "^1=slow", "^2=hbf")]
    regions = Placement(model, rules, time.monotonic() + 100).regions
    numbers = painted(tensors, model.size, lambda tensor: int(tensor.name[0]))
    expected = [
        (page * PAGE, names[number])
        for page, number in enumerate(numbers)
        if not page or numbers[page - 1] != number
    ]
    assert regions == expected


# Mounts


def sparse_gguf(path: Path) -> Path:
    """A sound GGUF of LARGEST bytes: two tensors of 4 TiB and one of 7."""
    kind = b"general.architecture"
    header = struct.pack("<4sIQQ", b"GGUF", 3, 3, 1)
    header += struct.pack(f"<Q{len(kind)}sIQ5s", len(kind), kind, 8, 5, b"llama")
    offset = 0
    for name, columns in ((b"token_embd.weight", 4), (b"blk.0.ffn_up.weight", 4), (b"output.weight", 7)):
        header += struct.pack(f"<Q{len(name)}sIQQIQ", len(name), name, 2, columns << 19, 1 << 19, 0, offset)
        offset += columns << 40
    path.write_bytes(header)
    os.truncate(path, LARGEST)
    return path


def facts_of(pid: int) -> dict[str, int]:
    """Memory of a process, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", text, re.MULTILINE)
    return {name: int(kib) * 1024 for name, kib in found}


def settled(point: Path) -> dict[str, Any]:
    """stats.json once every reply is recorded: a reader may be back before."""
    while (stats := client.read_hidden(point, "stats.json"))["in_flight"]:
        time.sleep(0.01)
    return stats


LAYOUTS = {
    "plain": Layout(),
    "resident": Layout(64 * MIB),
    "fifo": Layout(64 * MIB, "fifo"),
    "more-than-there-is": Layout(8 * TIB),
    "place": Layout(place=("output=dram", "token=hbf")),
    "resident-place": Layout(64 * MIB, place=("output=dram",)),
}
CASES = [
    (engine, name)
    for engine in ENGINES
    for name, layout in LAYOUTS.items()
    # libfuse cannot drop pages.
    if engine == "kernel" or layout.resident_bytes is None
]


@pytest.mark.parametrize(("engine", "name"), CASES)
def test_16_tib_take_no_more_memory_than_what_is_read_of_them(tmp_path, engine, name):
    source, point = sparse_gguf(tmp_path / "sparse.gguf"), tmp_path / "mnt"
    point.mkdir()
    config = MountConfig(source, point, TierSpec(4000), engine, layout=LAYOUTS[name])
    with child.mounted(config):
        pid = client.read_hidden(point, "spec.json")["pid"]
        assert facts_of(pid)["VmHWM"] < MOST_RESIDENT
        chance = random.Random(name)
        offsets = {0, (LARGEST - 1) // PAGE * PAGE} | {
            chance.randrange(LARGEST // PAGE) * PAGE for _ in range(500)
        }
        header = source.open("rb").read(PAGE)
        with (point / "model.gguf").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in sorted(offsets, key=lambda _: chance.random()):
                assert os.pread(file.fileno(), PAGE, offset) == (bytes(PAGE) if offset else header)
        stats = settled(point)
        (model,) = stats["files"].values()
        assert not model["complete"] and model["size"] == LARGEST
        # libfuse's engine lets the kernel read ahead.
        assert model["arrived_bytes"] == stats["bytes_read"] >= len(offsets) * PAGE
        if "resident" in stats:
            counted = sum(offset < 8 * TIB for offset in offsets) if "place" in name else len(offsets)
            assert stats["resident"]["resident_bytes"] >= counted // 2 * PAGE
        if "place" in name:
            assert stats["tier_bytes"]["dram"] > stats["tier_bytes"]["hbf"] / 4 > 0
        # VmHWM would count pages of the source, which the page cache holds anyhow.
        assert facts_of(pid)["RssAnon"] < MOST_RESIDENT


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sparse_source_without_preload_is_not_looked_through(tmp_path, engine):
    source, point = sparse_gguf(tmp_path / "sparse.gguf"), tmp_path / "mnt"
    point.mkdir()
    with child.mounted(MountConfig(source, point, TierSpec(100), engine, preload=False)):
        pid = client.read_hidden(point, "spec.json")["pid"]
        assert facts_of(pid)["VmHWM"] < MOST_RESIDENT


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A folder of 100,000 small files."""
    folder = tmp_path_factory.mktemp("crowd")
    for number in range(100_000):
        os.close(os.open(folder / f"{number:06}", os.O_CREAT | os.O_WRONLY))
    (folder / "099999").write_bytes(b"last")
    yield folder
    shutil.rmtree(folder)


def test_a_folder_of_100_000_files_is_served(crowd, tmp_path):
    with child.mounted(MountConfig(crowd, tmp_path, TierSpec())):
        assert sum(1 for _ in tmp_path.iterdir()) == 100_000
        assert (tmp_path / "099999").read_bytes() == b"last"
        assert (tmp_path / "000000").read_bytes() == b""
        (name,) = settled(tmp_path)["files"]
        assert name == "099999"
        pid = client.read_hidden(tmp_path, "spec.json")["pid"]
        assert facts_of(pid)["VmHWM"] < MOST_RESIDENT + 100_000 * 2000
