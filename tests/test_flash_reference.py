"""hbf_fuse's flash device, compared with flash_reference, which is independent of it."""

# mypy: disable-error-code="var-annotated, misc, method-assign"

import random
import statistics
from bisect import bisect_right

import pytest
from flash_reference import ARBITRATIONS, Reference, closed_loop, closed_loop_of, deadlines, formula, plane_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hbf_fuse.tier import Tier, TierSpec

KIB = 1024
FAR_NS = 10**12
slow = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def specs(draw, rates=None, depth=None, planes=None):
    limited = st.integers(1, 30_000).map(float) | st.floats(0.5, 30_000)
    rates = st.none() | limited if rates is None else rates
    return TierSpec(
        bandwidth_mbps=draw(rates),
        latency_ms=draw(st.sampled_from([0, 0.004, 0.1])),
        planes=draw(st.integers(1, 70) if planes is None else planes),
        page_bytes=draw(st.sampled_from([512, 4096, 16384]) | st.integers(1, 9000)),
        t_read_us=draw(st.sampled_from([0, 0.7, 3, 25, 60]) | st.floats(0, 100)),
        depth=draw(st.just(0) if depth is None else depth),
        interleave=draw(st.sampled_from(["hashed", "modulo"])),
    )


def sizes(spec, pages=300):
    return st.integers(1, 2 * spec.page_bytes) | st.integers(1, pages * spec.page_bytes)


def crowd(spec, most=14, pages=6, within_ns=400_000):
    """Reads in order of arrival, within a range so short that planes collide and registers are hit."""
    span = 3 * spec.planes * spec.page_bytes
    one = st.tuples(st.integers(0, within_ns), st.integers(0, span), sizes(spec, pages))
    return st.lists(one, min_size=1, max_size=most).map(lambda reads: sorted(reads, key=lambda read: read[0]))


def model(spec, reads):
    tier = Tier(spec)
    return [tier.reserve(*read) for read in reads]


# (a) One read of an idle device.


@slow
@given(st.data())
def test_single_read(data):
    spec = data.draw(specs())
    offset, nbytes = data.draw(st.integers(0, 1 << 44)), data.draw(sizes(spec))
    [simulated], [modelled] = deadlines(spec, [(0, offset, nbytes)]), model(spec, [(0, offset, nbytes)])
    assert 0 <= simulated - formula(spec, offset, nbytes) < 1  # the reference against the definition
    assert abs(modelled - simulated) <= 2


@pytest.mark.parametrize("interleave", ["hashed", "modulo"])
@pytest.mark.parametrize("planes", [1, 3, 48, 65_536])
def test_single_read_of_many_rounds(planes, interleave):
    spec = TierSpec(3000, 0.01, planes=planes, page_bytes=512, t_read_us=7, interleave=interleave)
    read = (5, 12_345_677, 512 * 20_000 + 3)
    assert abs(model(spec, [read])[0] - 5 - formula(spec, *read[1:])) <= 2


# (b) A second read, far later: exact. Pages that a register still holds are not sensed again.


@slow
@given(st.data())
def test_second_read_far_later(data):
    spec = data.draw(specs())
    first = data.draw(st.integers(0, 1 << 40)), data.draw(sizes(spec, 40))
    near = data.draw(st.integers(-4, 4)) * spec.page_bytes + data.draw(st.integers(0, spec.page_bytes))
    second = max(0, first[0] + near), data.draw(sizes(spec, 40))
    reads = [(0, *first), (FAR_NS, *second)]
    assert all(abs(a - b) <= 2 for a, b in zip(model(spec, reads), deadlines(spec, reads), strict=True))


@pytest.mark.parametrize("interleave", ["hashed", "modulo"])
@pytest.mark.parametrize("planes", [1, 3, 8])
def test_register_holds_the_page_sensed_last(planes, interleave):
    spec = TierSpec(1000, planes=planes, page_bytes=4096, t_read_us=50, interleave=interleave)
    page = 17
    other = next(
        n for n in range(18, 999) if plane_of(n, planes, interleave) == plane_of(page, planes, interleave)
    )
    reads = [(i * FAR_NS, n * 4096, 4096) for i, n in enumerate([page, page, other, page, page])]
    took = [due - at for due, (at, _, _) in zip(model(spec, reads), reads, strict=True)]
    assert took == pytest.approx([54096, 4096, 54096, 54096, 4096], abs=1)


# Reads in competition, in cases where every legitimate link gives the same result.


@slow
@given(st.data())
def test_crowd_without_a_link(data):
    """Planes, registers and depth alone: exact, to the ns."""
    spec = data.draw(specs(rates=st.none(), depth=st.integers(0, 5)))
    reads = data.draw(crowd(spec))
    assert model(spec, reads) == deadlines(spec, reads)


@slow
@given(st.data())
def test_crowd_of_one_plane(data):
    """One plane senses in the order of the reads, so the link has one order too."""
    spec = data.draw(specs(planes=st.just(1), depth=st.just(0)))
    reads = data.draw(crowd(spec))
    assert all(
        abs(a - b) <= 2 * len(reads) for a, b in zip(model(spec, reads), deadlines(spec, reads), strict=True)
    )


@slow
@given(st.data())
def test_crowd_is_possible(data):
    """No read is earlier than any schedule of the link allows.

    Each read: not earlier than if it had the link alone, from the time when its pages are sensed. All reads:
    at no instant are more bytes done than carried by a link that is never idle while a page waits, in
    whatever order.
    """
    spec = data.draw(specs())
    reads = data.draw(crowd(spec))
    due = model(spec, reads)
    possible(spec, reads, due)


def possible(spec, reads, due):
    device, ends = Reference(spec), []
    carried = device._carried

    def note(read):
        ends.append((device.now, read.pieces[read.next]))
        carried(read)

    device._carried = note
    submitted = [device.submit(at * device.scale, offset, nbytes) for at, offset, nbytes in reads]
    device.run(lambda read: False)
    for read, deadline in zip(submitted, due, strict=True):
        left, least = read.nbytes, 0
        for page, piece in zip(read.pages, read.pieces, strict=True):
            least = max(least, max(page.ready, read.admitted) + left * device.byte_ticks)
            left -= piece
        assert deadline >= device.ns(least + device.latency_ticks) - 2
    times, sums = [time for time, _ in ends], [0]
    for _, piece in ends:
        sums.append(sums[-1] + piece)
    done = 0
    slack = 2 * len(reads)  # each transfer may be rounded
    for deadline, nbytes in sorted((d, read[2]) for d, read in zip(due, reads, strict=True)):
        done += nbytes
        at = (deadline + slack) * device.scale - device.latency_ticks
        i = bisect_right(times, at)
        most = sums[i]
        if i < len(ends) and device.byte_ticks:
            most += max(0, at - (times[i] - ends[i][1] * device.byte_ticks)) / device.byte_ticks
        assert done <= most + 1e-6


# (d) Depth.


@slow
@given(st.data())
def test_depth_of_one(data):
    """One read at a time: each is alone, so all are exact, but rounding adds up from read to read."""
    spec = data.draw(specs(depth=st.just(1)))
    reads = data.draw(crowd(spec))
    assert all(
        abs(a - b) <= 2 * len(reads) for a, b in zip(model(spec, reads), deadlines(spec, reads), strict=True)
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_depth_admits_when_a_read_is_done(depth):
    """A read is in the device until its data is visible: `depth` of them every round trip."""
    spec = TierSpec(None, 1.0, planes=64, page_bytes=4096, t_read_us=10, interleave="modulo", depth=depth)
    reads = [(0, page * 4096, 4096) for page in range(21)]
    assert model(spec, reads) == [1_010_000 * (i // depth + 1) for i in range(21)]
    assert model(spec, reads) == deadlines(spec, reads)


# (c) Closed loops.


def stream(kind, seed, reader, nbytes, page):
    rng = random.Random(f"{kind}/{seed}/{reader}")
    if kind in ("random", "unaligned"):
        grain = 512 if kind == "unaligned" else max(nbytes, 4096)
        while True:
            yield rng.randrange(1 << 22) * grain, nbytes
    at = rng.randrange(1 << 22) * nbytes
    while True:
        yield at, nbytes
        at += nbytes if kind == "sequential" else 8 * max(nbytes, page)


def thinker(seed, most_ns):
    """A separate pause for each read of each reader, the same for the model and the reference."""
    rngs = {}
    return lambda reader: rngs.setdefault(reader, random.Random(f"pause/{seed}/{reader}")).randrange(most_ns)


def errors(spec, kind, per_reader, wanted, seeds=1, think_ns=0, **choices):
    """By how much the model is faster, for all readers and for the first one, for each seed."""
    total, first = [], []
    for seed in range(seeds):
        pair = []
        for run in (
            lambda *a: closed_loop_of(Tier(spec).reserve, *a),
            lambda *a: closed_loop(spec, *a, **choices),
        ):
            streams = [stream(kind, seed, i, nbytes, spec.page_bytes) for i, nbytes in enumerate(per_reader)]
            pair.append(run(streams, wanted, thinker(seed, think_ns) if think_ns else None))
        total.append(pair[0].mbps() / pair[1].mbps() - 1)
        first.append(pair[0].mbps(0) / pair[1].mbps(0) - 1)
    return total, first


LINK, PLANES, EVEN = 0.5, 2.5, 1.0  # the link's rate divided by the planes': which of them is the bottleneck


@pytest.mark.parametrize("kind", ["random", "unaligned", "sequential", "strided"])
@pytest.mark.parametrize("ratio", [LINK, EVEN, PLANES])
@pytest.mark.parametrize(("nbytes", "wanted"), [(512, 3000), (4096, 3000), (65536, 1000), (1 << 20, 60)])
def test_one_reader(nbytes, wanted, ratio, kind):
    """With one reader there is nothing to arbitrate: only rounding differs."""
    spec = TierSpec(3 * 16.384e3 / 20 * ratio, 0.01, planes=3, page_bytes=16384, t_read_us=20)
    [error], _ = errors(spec, kind, [nbytes], wanted)
    assert abs(error) < 2e-4


STEADY = [
    # kind, bytes, readers, reads
    ("random", 512, 8, 3000),
    ("random", 4096, 32, 3000),
    ("random", 65536, 8, 400),
    ("random", 1 << 20, 4, 60),
    ("sequential", 65536, 8, 400),
    ("sequential", 1 << 20, 4, 60),
    ("strided", 65536, 4, 400),
    ("unaligned", 65536, 4, 400),
]


def agree(values, tolerance, most_chance=0.06):
    """The mean over seeds is within the tolerance, or within the random error of so few seeds.

    Two runs of the same reads diverge after the first read that the link serves in another order. From there
    on they are two samples of the same random system, each with its own error (about 1 % in 3000 reads of one
    page).
    """
    chance = 3 * statistics.stdev(values) / len(values) ** 0.5
    assert chance < most_chance, "too few reads to tell"
    assert abs(statistics.mean(values)) < tolerance + chance, values


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("ratio", [LINK, PLANES])
@pytest.mark.parametrize(("kind", "nbytes", "readers", "wanted"), STEADY)
def test_many_readers(kind, nbytes, readers, wanted, ratio, depth):
    spec = TierSpec(16 * 16.384e3 / 20 * ratio, 0.005, planes=16, page_bytes=16384, t_read_us=20, depth=depth)
    total, _ = errors(spec, kind, [nbytes] * readers, wanted // 3, seeds=3)
    agree(total, 0.01)


@pytest.mark.parametrize("depth", [0, 4])
@pytest.mark.parametrize("planes", [2, 3, 64])
def test_many_readers_where_link_and_planes_are_even(planes, depth):
    spec = TierSpec(planes * 4.096e3 / 60, planes=planes, page_bytes=4096, t_read_us=60, depth=depth)
    total, _ = errors(spec, "random", [4096] * 8, 1000, seeds=4)
    agree(total, 0.01)


@pytest.mark.parametrize("nbytes", [512, 4096])
def test_sequential_readers_below_a_page(nbytes):
    """Several streams share the planes, and each reads a page in parts. Whether a stream's page is still in
    the register for its next part depends on a few ns. Without pauses the streams lock into one pattern for
    thousands of reads, and rates of seeds differ by a factor of two: they cannot be compared. With pauses
    this averages out.
    """
    spec = TierSpec(7864, planes=8, page_bytes=16384, t_read_us=5, interleave="modulo")
    total, _ = errors(spec, "sequential", [nbytes] * 8, 1000, seeds=10, think_ns=5000)
    agree(total, 0.01, most_chance=0.15)


# The cost of the model's one contiguous transfer, compared with a link that carries each page when it is
# sensed.


def test_small_read_behind_a_transfer_that_waited_to_be_contiguous():
    """The large read's first page is sensed at 8 us and its second at 32; one transfer of both begins at 24.
    A page sensed at 28 could pass between them if the link went by page. Here it waits for the end of the
    transfer, at 40.
    """
    page = 4096
    spec = TierSpec(512, planes=2, page_bytes=page, t_read_us=8, interleave="modulo")
    reads = [
        (0, page, 1),
        (0, 3 * page, 1),
        (0, 5 * page, 1),
        (0, 8 * page, 2 * page),
        (20_000, 100 * page, 512),
    ]
    by_page, contiguous = [29_000, 41_000]
    for arbitration in ARBITRATIONS:
        assert deadlines(spec, reads, arbitration=arbitration)[-1] == by_page
    due = model(spec, reads)
    assert due[3] == pytest.approx(40_000, abs=5)
    assert by_page - 5 <= due[4] <= contiguous + 5


def test_link_time_lost_to_a_transfer_that_waited_to_be_contiguous():
    """Three of the first read's four pages are sensed at 10 us, the last at 60: the transfer is from 30 to
    70. The second read's three pages are sensed at 20: it has 10 us before that transfer and 20 us after. A
    link that goes by page would have begun at 10 and finished both at 80.
    """
    page = 4096
    spec = TierSpec(409.6, planes=4, page_bytes=page, t_read_us=10, interleave="modulo")
    reads = [(0, 4 * i * page, 1) for i in range(5)] + [(0, 101 * page, 4 * page), (0, 205 * page, 3 * page)]
    for arbitration in ARBITRATIONS:
        assert max(deadlines(spec, reads, arbitration=arbitration)) == pytest.approx(80_000, abs=20)
    due = model(spec, reads)
    assert due[-2] == pytest.approx(70_000, abs=20)
    assert 80_000 <= due[-1] <= 90_020


@pytest.mark.parametrize("ratio", [LINK, EVEN, PLANES])
def test_small_readers_beside_large_ones(ratio):
    """The total rate is the same. The small readers get less of it, by up to 15 % compared with oldest first.

    The tolerance: if a small read's page is sensed while a large read is being carried, it waits for all of
    that read. In the reference it passes at a page that is not sensed yet. The difference is at most 16 pages
    a time.
    """
    spec = TierSpec(16 * 4.096e3 / 5 * ratio, planes=16, page_bytes=4096, t_read_us=5)
    total, small = errors(spec, "random", [4096, 65536] * 4, 600, seeds=4)
    agree(total, 0.02)
    assert -0.35 < statistics.mean(small) < 0.05
