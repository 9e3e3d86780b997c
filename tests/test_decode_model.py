"""What decode from a tier is held against: the tier model, with all that it has."""

import pytest

from hbf_fuse.sweep.decode import WINDOW_BYTES, Decode
from hbf_fuse.tier import TierSpec, expect

COMPUTE = 1 / 121
NBYTES = 89.56e6


def decode(spec):
    return Decode(COMPUTE, {"hbf": NBYTES}, {"hbf": spec})


@pytest.mark.parametrize(
    "spec",
    [
        TierSpec(500),
        TierSpec(500, 5),
        TierSpec(500, jitter="exponential:5"),
        TierSpec(500, 1, jitter="tail:0.1,50"),
        TierSpec(500, planes=4, page_bytes=4096, t_read_us=50),
    ],
)
def test_a_tokens_time_is_what_the_tier_model_gives_one_window_after_the_other(spec):
    rate = expect.closed_loop(spec, WINDOW_BYTES, depth=1)
    assert decode(spec).tier_seconds == pytest.approx(NBYTES / rate / 1e6, rel=0.01)


def test_at_the_break_even_half_the_speed_is_left():
    latency_ms = 0.1
    even = decode(TierSpec(500, latency_ms)).break_even_mbps
    assert decode(TierSpec(even, latency_ms)).predicted_tg == pytest.approx(121 / 2, rel=0.01)
    assert decode(TierSpec(500, 5)).break_even_mbps is None


def test_two_predictions_stand_side_by_side():
    """Nothing overlaps, and everything does; with the bytes that hide the latency: 500 MB/s x 5 ms."""
    found = decode(TierSpec(500, 5))
    assert found.predicted_tg == pytest.approx(1 / (COMPUTE + found.tier_seconds))
    assert found.overlapped_tg == pytest.approx(1 / found.tier_seconds)
    assert found.hiding_bytes == pytest.approx(2.5e6)
    assert decode(TierSpec(latency_ms=5)).hiding_bytes is None
    assert decode(TierSpec(1e6)).overlapped_tg == pytest.approx(121)
