"""The device in virtual time: what reads that wait for each other would have taken on another tier."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.heap import Heap

START = -1
"""Parent of a read without predecessor: its think time counts from the beginning."""


@dataclass(frozen=True, slots=True)
class Request:
    """A read in a chain. after: what it waits for, each as (place in the list, think time in ns): it arrives
    when the data of all of them was there and each think time is over. Or START. 0 bytes pass no tier: a mark
    in time. tier: its place among those that a replay is made on.
    """

    after: tuple[tuple[int, int], ...]
    offset: int
    nbytes: int
    tier: int = 0


class Replay:
    """Requests as flat arrays, to be replayed on any number of tiers.

    IndexError for a request that waits for one that does not exist, or has no place of a tier. What is beyond
    FOREVER_NS, or as many bytes, is taken to be there.
    """

    def __init__(self, requests: Sequence[Request], start_ns: int = 0) -> None:
        count = len(requests)
        self._count = count
        self._offsets = array("q", [min(request.offset, FOREVER_NS) for request in requests])
        self._nbytes = array("q", [request.nbytes for request in requests])
        places = [request.tier for request in requests]
        if min(places, default=0) < 0:
            raise IndexError("a tier has a place below 0")
        self._tiers = array("q", places)
        self._most_tiers = max(places, default=0) + 1
        # When each could arrive at the earliest, and for how many others it waits.
        self._arrivals = array("q", [start_ns]) * count
        self._waits = array("q", bytes(8 * count))
        # Who waits for a request: the places from _firsts[request] up to _firsts[request + 1] of these.
        self._firsts = array("q", bytes(8 * (count + 2)))
        edges = 0
        for place, request in enumerate(requests):
            for parent, think_ns in request.after:
                if parent == START:
                    self._arrivals[place] = max(self._arrivals[place], min(start_ns + think_ns, FOREVER_NS))
                elif not 0 <= parent < count:
                    raise IndexError(f"request {place} waits for {parent}; there are {count}")
                else:
                    self._waits[place] += 1
                    self._firsts[parent + 2] += 1
                    edges += 1
        for place in range(count):
            self._firsts[place + 1] += self._firsts[place]
        self._children = array("q", bytes(8 * edges))
        self._thinks = array("q", bytes(8 * edges))
        # Each child goes to the first free place of its parent, which moves on; in the end every first one
        # is where that of the next parent was.
        for place, request in enumerate(requests):
            for parent, think_ns in request.after:
                if parent != START:
                    at = self._firsts[parent + 1]
                    self._children[at] = place
                    self._thinks[at] = min(think_ns, FOREVER_NS)
                    self._firsts[parent + 1] = at + 1

    def on(self, *tiers: Tier) -> list[int]:
        """When each read's data is there, in ns. 0 for those that wait for each other in a circle.

        tiers: by their places; IndexError if a read's is not among them. Reads reach them in the order of
        their arrivals there, which need not be that of the list.
        """
        if self._most_tiers > len(tiers):
            raise IndexError(f"a read of tier {self._most_tiers - 1}; there are {len(tiers)}")
        done = array("q", bytes(8 * self._count))
        self._run(tiers, Heap(self._count), self._arrivals[:], self._waits[:], done)
        return done.tolist()

    def _run(
        self,
        tiers: tuple[Tier, ...],
        ready: Heap,
        arrivals: "array[int]",
        waits: "array[int]",
        done: "array[int]",
    ) -> None:
        for place in range(self._count):
            if not waits[place]:
                ready.push(arrivals[place], place)
        while ready.count:
            done_ns = ready.first_key()
            place = ready.pop()
            if self._nbytes[place]:
                tier = tiers[self._tiers[place]]
                done_ns = tier.reserve(done_ns, self._offsets[place], self._nbytes[place])
            done[place] = done_ns
            for at in range(self._firsts[place], self._firsts[place + 1]):
                child = self._children[at]
                arrivals[child] = max(arrivals[child], min(done_ns + self._thinks[at], FOREVER_NS))
                waits[child] -= 1
                if not waits[child]:
                    ready.push(arrivals[child], child)


def replay(requests: Sequence[Request], tier: Tier, start_ns: int = 0) -> list[int]:
    """When each read's data is there on a tier of one's choosing, in ns from start_ns on; see Replay."""
    return Replay(requests, start_ns).on(tier)
