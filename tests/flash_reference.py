"""A small, slow reference of a flash device: planes with queues, page registers, a link that carries pages.

Event by event, page by page, in exact whole numbers. It shares no code with hbf_fuse: it reads only the
fields of a spec. Open questions (which read the link serves first, whether a plane waits until its registers
are carried) are parameters, so that a device model can be compared with every legitimate choice.
"""

# mypy: disable-error-code="var-annotated, misc, method-assign"

import heapq
from collections import deque

GOLDEN = 0x9E3779B97F4A7C15
ARBITRATIONS = ("oldest", "ready", "robin")
CARRIED, SENSED, DONE, ARRIVED = range(4)  # in this order where they fall on the same instant


def plane_of(page, planes, interleave):
    row, place = divmod(page, planes)
    if interleave == "modulo":
        return place
    return (place + ((((row * GOLDEN) % 2**64) >> 32) * planes >> 32)) % planes


class Page:
    """One sensing of a page. It waits in its plane's queue, is sensed, and is held until it was carried for
    every user.
    """

    __slots__ = ("number", "plane", "readers", "ready", "users")

    def __init__(self, number, plane):
        self.number, self.plane, self.ready = number, plane, None
        self.users = 0  # reads whose data was not carried from it yet
        self.readers = []  # reads to notify when it is sensed


class Plane:
    __slots__ = ("asked_last", "busy", "held", "queue")

    def __init__(self):
        self.queue = deque()
        self.busy = False
        self.asked_last = None  # the register's content when all requested pages are sensed
        self.held = 0  # sensed, or being sensed, and not yet carried


class Read:
    __slots__ = (
        "admitted",
        "arrived",
        "done",
        "nbytes",
        "next",
        "number",
        "offset",
        "pages",
        "pieces",
        "tag",
        "waits",
    )

    def __init__(self, number, arrived, offset, nbytes, tag):
        self.number, self.arrived, self.offset, self.nbytes, self.tag = number, arrived, offset, nbytes, tag
        self.admitted = self.done = None
        self.next = 0
        self.pages, self.pieces = [], []
        self.waits = False  # for its next page


class Reference:
    """Time is in ticks. `scale` ticks are a ns, so that a byte on the link takes a whole number of ticks.

    arbitration: among the reads whose next page is sensed, the link serves the "oldest", the one whose page
    was "ready" first, or each in turn ("robin").
    registers: pages that a plane holds at once, including the one that it senses; 0: sensing never waits for
    the link.
    depth_until: a read counts against the depth until its data is "visible" (latency included) or "carried".
    """

    def __init__(self, spec, arbitration="oldest", registers=0, depth_until="visible"):
        assert arbitration in ARBITRATIONS and depth_until in ("visible", "carried")
        self.page_bytes, self.count, self.interleave = spec.page_bytes, spec.planes, spec.interleave
        rate = 0 if spec.bandwidth_mbps is None else round(spec.bandwidth_mbps * 1e6)
        self.scale = rate or 1
        self.byte_ticks = 10**9 if rate else 0
        self.sense_ticks = round(spec.t_read_us * 1000) * self.scale
        self.latency_ticks = round(spec.latency_ms * 1e6) * self.scale
        self.depth, self.depth_until = spec.depth, depth_until
        self.arbitration, self.registers = arbitration, registers
        self.planes = [Plane() for _ in range(self.count)]
        self.now = self.order = self.arrivals = self.inside = 0
        self.events, self.lobby, self.candidates = [], deque(), []
        self.link_busy = False
        self.sensings = 0

    def submit(self, at, offset, nbytes, tag=None):
        """A read that arrives at this tick."""
        read = Read(self.arrivals, at, offset, nbytes, tag)
        self.arrivals += 1
        self._at(at, ARRIVED, read)
        return read

    def run(self, on_done):
        """Until nothing is left to do, or on_done(read) says True."""
        while self.events:
            self.now = self.events[0][0]
            while self.events and self.events[0][0] == self.now:
                _, kind, _, what = heapq.heappop(self.events)
                if kind == CARRIED:
                    self._carried(what)
                elif kind == SENSED:
                    self._sensed(what)
                elif kind == ARRIVED:
                    self.lobby.append(what)
                else:
                    if self.depth_until == "visible":
                        self.inside -= 1
                    if on_done(what):
                        return
                self._admit()
            self._serve()

    def _at(self, time, kind, what):
        self.order += 1
        heapq.heappush(self.events, (time, kind, self.order, what))

    def _admit(self):
        while self.lobby and (not self.depth or self.inside < self.depth):
            # If a read ends and another arrives at the same instant, the arrival queues behind those in the
            # lobby.
            read = self.lobby.popleft()
            self.inside += 1
            read.admitted = self.now
            end = read.offset + read.nbytes
            for number in range(read.offset // self.page_bytes, (end - 1) // self.page_bytes + 1):
                start = max(read.offset, number * self.page_bytes)
                read.pieces.append(min(end, (number + 1) * self.page_bytes) - start)
                read.pages.append(self._ask(number))
            self._offer(read)

    def _ask(self, number):
        if not self.count:
            page = Page(number, Plane())
            page.ready = self.now
        else:
            plane = self.planes[plane_of(number, self.count, self.interleave)]
            page = plane.asked_last
            if page is None or page.number != number:
                page = plane.asked_last = Page(number, plane)
                plane.queue.append(page)
                self._sense(plane)
            elif page.ready is not None and not page.users:
                plane.held += 1  # carried before, and to be carried again
        page.users += 1
        return page

    def _sense(self, plane):
        if plane.busy or not plane.queue or (self.registers and plane.held >= self.registers):
            return
        plane.busy = True
        plane.held += 1
        self.sensings += 1
        self._at(self.now + self.sense_ticks, SENSED, plane.queue.popleft())

    def _sensed(self, page):
        page.ready = self.now
        page.plane.busy = False
        for read in page.readers:
            self._candidate(read)
        page.readers = []
        self._sense(page.plane)

    def _offer(self, read):
        """Offer its next page to the link, now or when it is sensed."""
        page = read.pages[read.next]
        if page.ready is None:
            page.readers.append(read)
        else:
            self._candidate(read)

    def _candidate(self, read):
        self.order += 1
        # "robin": the number of carried pages of the read; reads with fewer come first.
        key = {"oldest": 0, "ready": max(read.pages[read.next].ready, read.admitted), "robin": read.next}
        heapq.heappush(self.candidates, (key[self.arbitration], read.number, read))

    def _serve(self):
        if not self.link_busy and self.candidates:
            read = heapq.heappop(self.candidates)[-1]
            self.link_busy = True
            self._at(self.now + read.pieces[read.next] * self.byte_ticks, CARRIED, read)

    def _carried(self, read):
        self.link_busy = False
        page = read.pages[read.next]
        page.users -= 1
        if not page.users:
            page.plane.held -= 1
            self._sense(page.plane)
        read.next += 1
        if read.next < len(read.pages):
            self._offer(read)
            return
        read.done = self.now + self.latency_ticks
        if self.depth_until == "carried":
            self.inside -= 1
        self._at(read.done, DONE, read)

    def ns(self, ticks):
        return -(-ticks // self.scale)


def deadlines(spec, reads, **choices):
    """Of (arrival_ns, offset, nbytes) in order of arrival."""
    device = Reference(spec, **choices)
    submitted = [device.submit(at * device.scale, offset, nbytes) for at, offset, nbytes in reads]
    device.run(lambda read: False)
    return [device.ns(read.done) for read in submitted]


def formula(spec, offset, nbytes):
    """Deadline of one read of an idle device, computed by definition and not simulated; in ns, a Fraction."""
    from fractions import Fraction

    rate = 0 if spec.bandwidth_mbps is None else round(spec.bandwidth_mbps * 1e6)
    end, asked, last = offset + nbytes, {}, {}
    latest = Fraction(0)
    for number in range(offset // spec.page_bytes, (end - 1) // spec.page_bytes + 1):
        plane = plane_of(number, spec.planes, spec.interleave)
        if last.get(plane) != number:
            asked[plane] = asked.get(plane, 0) + 1
        last[plane] = number
        sensed = asked[plane] * round(spec.t_read_us * 1000)
        left = end - max(offset, number * spec.page_bytes)
        latest = max(latest, sensed + (Fraction(left * 10**9, rate) if rate else 0))
    return latest + round(spec.latency_ms * 1e6)


class Steady:
    """Rates of a closed loop: of all reads after the first fifth, and of each reader."""

    def __init__(self, wanted, readers):
        self.wanted, self.warm = wanted, wanted // 5
        self.seen, self.begin, self.end = 0, 0, 0
        self.bytes, self.away, self.count = [0] * readers, [0] * readers, [0] * readers

    def note(self, now, reader, nbytes, away):
        self.seen += 1
        if self.seen == self.warm:
            self.begin = now
        elif self.seen > self.warm:
            self.bytes[reader] += nbytes
            self.away[reader] += away
            self.count[reader] += 1
            self.end = now
        return self.seen >= self.wanted

    def mbps(self, reader=None):
        """Decimal MB/s."""
        carried = sum(self.bytes) if reader is None else self.bytes[reader]
        return carried * 1e3 / (self.end - self.begin) if self.end > self.begin else 0.0


def closed_loop(spec, streams, wanted, think=None, **choices):
    """Readers that each keep one read in flight; streams: of (offset, nbytes), one a reader.

    think: ns from a read's end to the reader's next read. It breaks the lockstep of equal readers.
    """
    device, steady = Reference(spec, **choices), Steady(wanted, len(streams))
    streams = [iter(stream) for stream in streams]
    for reader, stream in enumerate(streams):
        device.submit(0, *next(stream), tag=reader)

    def done(read):
        at = read.done / device.scale
        if steady.note(at, read.tag, read.nbytes, at - read.arrived / device.scale):
            return True
        pause = think(read.tag) * device.scale if think else 0
        device.submit(device.now + pause, *next(streams[read.tag]), tag=read.tag)
        return False

    device.run(done)
    return steady


def closed_loop_of(reserve, streams, wanted, think=None, trace=None):
    """The same loop over a device model: reserve(arrival_ns, offset, nbytes) -> deadline_ns.

    trace: a list, to which (arrival_ns, offset, nbytes, deadline_ns) are added.
    """
    steady = Steady(wanted, len(streams))
    streams = [iter(stream) for stream in streams]
    order = len(streams)
    # (when, order, reader, began, nbytes); nbytes 0: the reader submits then.
    events = [(0, reader, reader, 0, 0) for reader in range(len(streams))]
    while True:
        now, _, reader, began, nbytes = heapq.heappop(events)
        order += 1
        if nbytes:
            if steady.note(now, reader, nbytes, now - began):
                return steady
            if think:
                heapq.heappush(events, (now + think(reader), order, reader, 0, 0))
                continue
        offset, nbytes = next(streams[reader])
        deadline = reserve(now, offset, nbytes)
        if trace is not None:
            trace.append((now, offset, nbytes, deadline))
        heapq.heappush(events, (deadline, order, reader, now, nbytes))
