"""Percentiles in constant memory."""

from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse.observe import Histogram


@given(st.lists(st.integers(0, 2**40), min_size=1), st.floats(0, 100))
def test_a_percentile_is_within_three_percent(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(1, -(-percent * len(values) // 100))
    exact = sorted(values)[int(rank) - 1]
    assert exact <= histogram.percentile(percent) + 1 <= exact * (1 + 1 / 32) + 2


def test_early_counts_as_on_time_and_nothing_counted_is_zero():
    histogram = Histogram()
    assert histogram.percentile(50) == 0
    histogram.add(-5)
    assert histogram.summary() == {"p50": 0, "p90": 0, "p99": 0, "max": 0}
