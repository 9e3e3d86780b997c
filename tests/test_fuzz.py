"""Input from others gives a valid object or one line of the project's own, in bounded time and memory."""

import json
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from fuzzing import anygguf, kernel
from fuzzing.edits import edits
from fuzzing.promise import check
from fuzzing.targets import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbf_fuse import documents, gguf
from hbf_fuse.engine.kernel import abi
from hbf_fuse.engine.kernel.abi import Opcode
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Rule
from hbf_fuse.sweep import grid
from hbf_fuse.sweep.cell import ModelFile
from hbf_fuse.tier import SpecError, TierSpec
from hbf_fuse.traces import chains
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.trace import RECORD, Read, Trace, header_line

MAX_BYTES = 64 << 20
HOSTILE_SECONDS = 1.0
"""CPU seconds: wall time would depend on other users of the machine."""

steps = st.tuples(st.integers(0, (1 << 16) - 1), st.integers(0, 255))


@st.composite
def spoilt(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A valid input in which some byte ranges were replaced by others."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_is_accepted_or_refused_in_a_line(name):
    target = TARGETS[name]
    seeds = target.seeds()
    for seed in seeds:
        check(target, seed)

    @settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(st.lists(steps, max_size=6).map(edits), spoilt(seeds), st.binary(max_size=200)))
    def holds(data: bytes) -> None:
        check(target, data)

    holds()


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(list(Opcode)), st.integers(0, 12), st.binary(max_size=60)), max_size=16
    )
)
def test_every_request_is_answered_once_or_not_at_all(messages):
    kernel.requests(
        b"".join(
            kernel.message(opcode, nodeid, body, unique=place)
            for place, (opcode, nodeid, body) in enumerate(messages, start=1)
        )
    )


def header(tensors: int = 0, pairs: int = 0, rest: bytes = b"") -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, tensors, pairs) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def array(kind: int, length: int, members: bytes = b"") -> bytes:
    return text(b"a") + struct.pack("<IIQ", anygguf.ARRAY, kind, length) + members


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


MANY = 4 << 20
HOSTILE_GGUFS = {
    "2^63 tensors": header(tensors=1 << 63),
    "2^63 pairs": header(pairs=1 << 63),
    "as many tensors as are believed, all alike": header(
        gguf.reader.MAX_TENSORS, 0, tensor(b"x", (1,)) * gguf.reader.MAX_TENSORS
    ),
    "as many tensors as are believed": header(
        gguf.reader.MAX_TENSORS,
        0,
        b"".join(tensor(b"%060d" % place, (0, 1, 1, 1)) for place in range(gguf.reader.MAX_TENSORS))
        + bytes(64),
    ),
    "a name of 1 GB": header(pairs=1, rest=struct.pack("<Q", 1 << 30) + bytes(64)),
    "a name of 4 MiB that is there": header(1, 0, tensor(b"n" * MANY, (1,))),
    "a text of 1 GB": header(pairs=1, rest=text(b"a") + struct.pack("<IQ", anygguf.STRING, 1 << 30)),
    "a text of 32 MiB that is there": header(
        0, 1, text(b"a") + struct.pack("<I", anygguf.STRING) + text(bytes(32 << 20))
    ),
    "an array of 2^63 numbers": header(pairs=1, rest=array(10, 1 << 63)),
    "an array of 2^63 texts": header(pairs=1, rest=array(anygguf.STRING, 1 << 63)),
    "an array of arrays": header(
        pairs=1, rest=array(anygguf.ARRAY, 1, struct.pack("<IQ", anygguf.ARRAY, 1) * 99)
    ),
    "as many empty texts as are believed": header(
        0, 1, array(anygguf.STRING, gguf.reader.MAX_STRINGS, bytes(8 * gguf.reader.MAX_STRINGS))
    ),
    "many short arrays": header(
        0,
        9000,
        b"".join(
            text(b"%d" % place) + struct.pack("<IIQ", 9, 0, 4096) + bytes(4096) for place in range(9000)
        ),
    ),
    "an offset beyond the end": header(1, 0, tensor(b"x", (32,), offset=1 << 62) + bytes(256)),
    "dimensions whose product is beyond 64 bits": header(1, 0, tensor(b"x", ((1 << 64) - 1,) * 4)),
    "a row that is no whole block": header(1, 0, tensor(b"x", (1, 256), 12) + bytes(256)),
    "alignment 0": header(0, 1, text(b"general.alignment") + struct.pack("<II", anygguf.U32, 0)),
    "a key twice": header(0, 2, (text(b"a") + struct.pack("<II", anygguf.U32, 1)) * 2),
    "tensors on top of each other": header(2, 0, tensor(b"x", (32,)) + tensor(b"y", (32,)) + bytes(256)),
    "control characters in a name": header(1, 0, tensor(b"\x1b[2J", (1,)) + bytes(64)),
}


@pytest.mark.parametrize("content", HOSTILE_GGUFS.values(), ids=HOSTILE_GGUFS)
def test_a_hostile_gguf_costs_little_time_and_memory(content, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    begin = time.thread_time()
    known = _read_or_refuse(path)
    assert time.thread_time() - begin < HOSTILE_SECONDS
    assert known is None or len(known.tensors) <= gguf.reader.MAX_TENSORS
    del known
    tracemalloc.start()
    try:
        _read_or_refuse(path)
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def _read_or_refuse(path: Path) -> gguf.GgufFile | None:
    try:
        return gguf.read(path)
    except gguf.GgufError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return None


def test_a_huge_sparse_file_is_refused_by_its_first_bytes(tmp_path):
    path = tmp_path / "sparse.gguf"
    path.write_bytes(header())
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    assert gguf.read(path).tensors == []


# Findings of fuzzing. Each of these once gave a traceback or a wrong result, or took endless time.

BLOCKS = ["general.architecture", anygguf.STRING, "x"], ["x.block_count", anygguf.U32, (1 << 32) - 1]
FOUND = {
    "requests: an INTERRUPT without a body was answered": (
        "requests",
        kernel.message(Opcode.INTERRUPT, 0),
    ),
    "requests: a READ without a body left a traceback": ("requests", kernel.message(Opcode.READ, 2)),
    "requests: opening a link left a traceback": (
        "requests",
        b"".join(kernel.message(Opcode.OPEN, node, abi.OPEN_IN.pack(0, 0)) for node in range(1, 8)),
    ),
    "requests: less than a header": ("requests", bytes(8)),
    **({"loop: a socket without another end was read for ever": ("loop", b"")} if "loop" in TARGETS else {}),
    "gguf: 2^32 layers took 32 GB": (
        "gguf",
        anygguf.packed(
            {**anygguf.MODEL, "pairs": [*BLOCKS, ["x.attention.head_count", anygguf.U32, 1]], "tensors": []}
        ),
    ),
    "gguf: experts in a tensor without dimensions": (
        "gguf",
        anygguf.packed({**anygguf.MODEL, "tensors": [["a_exps.w", [], 0, 0]]}),
    ),
    "gguf: more experts than bytes": (
        "gguf",
        anygguf.packed({**anygguf.MODEL, "tensors": [["a_exps.w", [256], 12, 0]]}),
    ),
    "tier: a whole number that no float holds": ("tier", b'{"mbps": 1' + b"0" * 400 + b"}"),
    "tier: a whole number that cannot be shown": ("tier", b'{"seed": 1' + b"0" * 4000 + b"}"),
    "tiers: nested without end": ("tiers", b"a = " + b"[" * 20_000),
    "tiers: 5,000 digits": ("tiers", b"a = " + b"9" * 5000),
    "tiers: a hexadecimal number that cannot be shown": ("tiers", b"[a]\nseed = 0x" + b"f" * 9000),
    "tiers: a key of 30,000 parts took 10 s": ("grid", b"a." * 30_000 + b"a = 1"),
    "tiers: the same with spaces": ("grid", b'"a b" . ' * 7000 + b"a = 1"),
    "grid: a size of 400 digits": ("grid", b'mode = ["stream"]\nresident = ["' + b"9" * 400 + b'G"]'),
    "grid: a pattern that Python's compiler cannot nest": ("grid", b'place = ["' + b"(" * 900 + b'=hbf"]'),
    "grid: a repetition beyond 32 bits": ("grid", b'place = ["a{99999999999}=hbf"]'),
    "grid: nobody's home": ("grid", b'model = "~nobody-at-all/x"'),
    "grid: two points of one name": ("grid", b"mbps = [500.00001, 500.00002]"),
    "settings: an envelope without figures": ("settings", b'{"machine": {}, "engines": {"kernel": {}}}'),
    "trace: a header without files": ("trace", header_line({"tiers": {}}) + bytes(RECORD.size)),
    "runs: half a character": ("runs", b"\xff\xff  \xff\xff\xff\xfe"),
    "runs: no engine": ("runs", b"\xff\xff>\xff\xfb\x00\x00"),
    "runs: a placement that is a number": ("runs", b"\xff*Q\x16\x03"),
    "runs: deeper than Python's stack": ("runs", b"[" * 100_000),
}


@pytest.mark.parametrize(("name", "data"), FOUND.values(), ids=FOUND)
def test_findings_stay_fixed(name, data):
    check(TARGETS[name], data)


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_a_run_with_a_part_of_the_wrong_type_is_refused_or_reported(place):
    check(TARGETS["runs"], edits([(place, 1)]))


def test_a_read_of_any_size_in_a_trace_costs_no_more_than_another():
    reads = [Read(place, 0, place + 5, place << 44, (1 << 32) - 1, 1, 2, 0) for place in range(200)]
    begin = time.thread_time()
    assert chains.first_pass_ns(reads, [read.done_ns for read in reads]) == 204
    chains.elsewhere(reads, [], TierSpec(500, 1))
    assert time.thread_time() - begin < HOSTILE_SECONDS


@settings(deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 50)), min_size=1, max_size=12)
)
def test_the_first_pass_is_over_when_every_page_has_come_once(stretches):
    reads = [
        Read(place, 0, place + 1, first * chains.PAGE, pages * chains.PAGE, 1, 2, 0)
        for place, (first, pages, _) in enumerate(stretches)
    ]
    done = [when for _, _, when in stretches]
    pages: dict[int, int] = {}
    for (first, count, _), when in zip(stretches, done, strict=True):
        for page in range(first, first + count):
            pages[page] = min(when, pages.get(page, when))
    assert chains.first_pass_ns(reads, done) == max(pages.values())


def test_empty_reads_and_phases_have_no_rate():
    ranges = [(0, 10), (10, 0), (10, 0), (20, 11), (31, 0)]
    reads = [Read(place, place, place + 5, *each, 1, 2, 0) for place, each in enumerate(ranges)]
    found = chains.elsewhere(reads, [Phase("decode", 4, 7, 7)], TierSpec(500, 1))
    assert found["recorded_tg"] is None and found["stage_seconds"] > 0


def test_a_record_that_ends_before_it_begins_makes_no_trace():
    content = header_line({"tiers": {"hbf": {}}, "files": {}}) + RECORD.pack(9, 9, 9, 0, 1, 1, 2, 0, 0)
    with pytest.raises(ValueError, match="record 0"):
        Trace.parse(content)


@pytest.mark.parametrize("size", [documents.MAX_JSON_BYTES + 1, 1 << 40])
def test_an_endless_document_is_refused_by_its_size(size, tmp_path):
    path = tmp_path / "endless.json"
    with path.open("wb") as file:
        file.truncate(size)
    for read in (documents.read_json, documents.read_toml):
        with pytest.raises(HbfError, match="longer than"):
            read(path)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 300_000,
        '{"a":' * 300_000,
        "[" + "[]," * 600_000 + "1]",
        "[" + "{}," * 600_000 + "1]",
        "9" * 2_000_000,
    ],
)
def test_the_worst_json_costs_bounded_memory(text):
    tracemalloc.start()
    try:
        documents.parse_json(text)
    except ValueError as error:
        assert len(str(error)) < 200
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_BYTES


@pytest.mark.parametrize("figure", [True, "x" * 10_000, [[]], 10**400, float("nan"), float("inf"), -1])
def test_a_nonsense_tier_is_refused_in_a_short_line(figure):
    with pytest.raises(SpecError) as refused:
        TierSpec.from_dict({"latency_ms": figure})
    assert len(str(refused.value)) < 200


def test_a_rule_longer_than_any_is_refused():
    with pytest.raises(HbfError, match="at most"):
        Rule.parse("(" * 2000 + "=hbf")


def test_two_cells_of_one_name_are_refused():
    known = grid.from_fields({"mbps": [500.00001, 500.00002]})
    with pytest.raises(HbfError, match="further apart"):
        known.cells(ModelFile((Path("m.gguf"),), 1 << 30, ""))


def test_quoted_file_content_has_no_control_characters(tmp_path):
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"cell": {"\x1b[2J" * 1000: 1, "name": 3}}))
    grid_file = tmp_path / "grid.toml"
    grid_file.write_text('"\\u001b[2J' + "x" * 50_000 + '" = 1\n')
    for line in (["sweep", str(grid_file)], ["kv", "sim", "--bench", str(run)]):
        said = subprocess.run(
            [sys.executable, "-m", "hbf_fuse", *line], capture_output=True, text=True, timeout=60, check=False
        )
        assert said.returncode and "Traceback" not in said.stderr
        assert "\x1b" not in said.stderr and len(said.stderr) < 5000
