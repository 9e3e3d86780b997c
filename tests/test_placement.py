"""Which tensors come from which tier."""

import pytest

from hbf_fuse import gguf
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import DRAM, MAIN, PAGE, Layout, Rule, placements_of
from hbf_fuse.gguf import presets, synth
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import attribution

EXPERTS_IN_HBF = ("ffn_.*_exps=hbf", ".*=dram")


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "moe.gguf"
    synth.write(presets.load("tiny-moe"), path)
    return path


def placed(path, *rules):
    (found,) = placements_of([gguf.read(path)], [Rule.parse(rule) for rule in rules])
    return found


def test_regions_cover_the_file_in_whole_pages(moe):
    placement = placed(moe, *EXPERTS_IN_HBF)
    starts = [start for start, _ in placement.regions]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert all(start % PAGE == 0 for start in starts)
    assert placement.bytes_of(DRAM) + placement.bytes_of(MAIN) == moe.stat().st_size


def test_no_page_of_the_tier_holds_a_byte_that_is_placed_in_dram(moe):
    placement = placed(moe, *EXPERTS_IN_HBF)
    for tensor in gguf.read(moe).tensors:
        pieces = {tier for tier, _, _ in placement.pieces(tensor.offset, tensor.nbytes)}
        if "_exps" in tensor.name:
            assert MAIN in pieces
        else:
            assert pieces == {DRAM}, tensor.name


def test_pieces_are_the_read_in_order(moe):
    placement = placed(moe, *EXPERTS_IN_HBF)
    size = moe.stat().st_size
    at = 0
    for _, offset, nbytes in placement.pieces(0, size):
        assert offset == at and nbytes > 0
        at += nbytes
    assert at == size
    assert next(placement.pieces(size - 10, 10))[1:] == (size - 10, 10)


def test_the_first_rule_that_fits_counts(moe):
    placement = placed(moe, r"blk\.0\.ffn_.*_exps=dram", "_exps=hbf", ".*=dram")
    first = next(t for t in gguf.read(moe).tensors if t.name.startswith("blk.0.ffn_gate_exps"))
    assert {tier for tier, _, _ in placement.pieces(first.offset, first.nbytes)} == {DRAM}


@pytest.mark.parametrize("text", ["ffn", "=hbf", "ffn=", "ffn_[=hbf"])
def test_an_invalid_rule_is_refused(text):
    with pytest.raises(HbfError, match="--place"):
        Rule.parse(text)


def test_a_pattern_that_matches_nothing_says_which_tensors_there_are(moe):
    with pytest.raises(HbfError, match=r"no tensor matches.*blk\.N\.ffn_gate_exps"):
        placed(moe, "attention=dram")


def test_an_undefined_tier_is_refused():
    with pytest.raises(HbfError, match="'slow', which is not defined"):
        Layout(place=("ffn=slow",))
    Layout(place=("ffn=slow",), tiers={"slow": TierSpec(10)})


def read_through(source, tmp_path, layout, mbps=200.0):
    """Read the model twice through a mount; returns its trace and its stats."""
    point = tmp_path / "mnt"
    point.mkdir(exist_ok=True)
    with child.mounted(MountConfig(source, point, TierSpec(mbps), layout=layout)) as mount:
        for _ in range(2):
            with (mount / "model.gguf").open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass
        return client.read_trace(mount), client.read_hidden(mount, "stats.json")


def test_the_tier_reads_no_byte_of_a_tensor_in_dram_and_dram_is_read_once(moe, tmp_path):
    layout = Layout(resident_bytes=32 << 20, place=EXPERTS_IN_HBF)
    trace, stats = read_through(moe, tmp_path, layout, mbps=1000)
    shares = attribution.attribute(trace, list(trace.header["tiers"]), gguf.read(moe).tensors, [])
    assert not [name for tier, name in shares.tiers if tier == MAIN and "_exps" not in name]
    in_dram = placed(moe, *EXPERTS_IN_HBF).bytes_of(DRAM)
    assert stats["tier_bytes"][DRAM] == pytest.approx(in_dram, abs=PAGE)
    assert stats["tier_bytes"][MAIN] > 1.5 * (moe.stat().st_size - in_dram)


def test_each_tier_has_its_own_rate(moe, tmp_path):
    """The experts come slowly, the rest at once: staging takes the time of the experts' bytes."""
    trace, stats = read_through(moe, tmp_path, Layout(place=EXPERTS_IN_HBF))
    (file,) = stats["files"].values()
    expected = placed(moe, *EXPERTS_IN_HBF).bytes_of(MAIN) / 200e6
    assert expected * 0.98 < file["staging"]["seconds"] < expected * 2
    assert trace.header["tiers"][DRAM]["bandwidth_mbps"] is None


def test_a_file_that_is_not_a_gguf_is_served_without_placement(noise, tmp_path):
    _, stats = read_through(noise(3 << 20), tmp_path, Layout(place=EXPERTS_IN_HBF))
    assert stats["tier_bytes"][MAIN] == 3 << 20
