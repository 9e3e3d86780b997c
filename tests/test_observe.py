"""Percentiles in constant memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hbf_fuse.observe import Histogram
from hbf_fuse.observe.bounds import MAX_READER_NAMES
from hbf_fuse.observe.readers import OTHERS, UNKNOWN
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.tier import TierSpec

SECOND = 1_000_000_000


@given(st.lists(st.integers(0, 2**40), min_size=1), st.floats(0, 100))
def test_a_percentile_is_within_three_percent(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    rank = max(1, -(-percent * len(values) // 100))
    exact = sorted(values)[int(rank) - 1]
    assert exact <= histogram.percentile(percent) + 1 <= exact * (1 + 1 / 32) + 2


@given(st.lists(st.integers(0, 2**40)))
def test_counts_below_powers_of_two_are_exact(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    powers = range(5, 41)
    assert histogram.below(powers) == [sum(value < 1 << power for value in values) for power in powers]
    assert (histogram.count, histogram.total) == (len(values), sum(values))


def test_early_counts_as_on_time_and_nothing_counted_is_zero():
    histogram = Histogram()
    assert histogram.percentile(50) == 0
    histogram.add(-5)
    assert histogram.summary() == {"p50": 0, "p90": 0, "p99": 0, "max": 0}


@pytest.fixture
def processes(monkeypatch):
    """Names and ids of the processes of threads, as linux.process_of finds them."""
    known: dict[int, tuple[str, int]] = {}
    monkeypatch.setattr("hbf_fuse.host.linux.process_of", known.get)
    return known


def a_pacer():
    return Pacer({"hbf": TierSpec()}, [(10, 1 << 40)], {})


def read_by(pacer, thread, at_ns=SECOND, nbytes=100):
    pacer.admit(0, 0, nbytes, thread, True, at_ns)


def test_reads_are_counted_by_process_and_none_is_lost(processes):
    pacer = a_pacer()
    for thread in range(1, 5000):
        processes[thread] = (f"program-{thread % 10}", thread)
        read_by(pacer, thread, at_ns=thread)
        if thread % 3 == 0:
            pacer.name_readers()
    readers = {each["comm"]: each for each in pacer.status()["readers"]}
    assert sum(each["reads"] for each in readers.values()) == 4999
    assert sum(each["bytes"] for each in readers.values()) == 499_900
    assert set(readers) == {f"program-{number}" for number in range(10)}
    assert all(499 <= each["reads"] <= 500 for each in readers.values())
    assert readers["program-7"]["pid"] == 4997


def test_a_thread_is_named_anew_after_a_pause_only(processes):
    pacer = a_pacer()
    for seconds, comm in ((1, "sh"), (2, "cat"), (20, "cp")):
        processes[7] = (comm, 7)
        read_by(pacer, 7, seconds * SECOND)
        pacer.name_readers()
    assert [(each["comm"], each["reads"]) for each in pacer.status()["readers"]] == [("sh", 2), ("cp", 1)]


def test_there_are_no_more_names_than_agreed(processes):
    pacer = a_pacer()
    for thread in range(1, 200):
        processes[thread] = (f"program-{thread}", thread)
        read_by(pacer, thread)
    read_by(pacer, 0)
    read_by(pacer, 999)
    readers = {each["comm"]: each["reads"] for each in pacer.status()["readers"]}
    assert len(readers) == MAX_READER_NAMES + 2 and sum(readers.values()) == 201
    assert readers[OTHERS] == 199 - MAX_READER_NAMES and readers[UNKNOWN] == 2
