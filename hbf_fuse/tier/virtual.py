"""The device in virtual time: what reads that wait for each other would have taken on another tier."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from hbf_fuse.tier.device import Tier

START = -1
"""What a read waits for that waits for no other: its think time counts from the beginning."""


@dataclass(frozen=True, slots=True)
class Request:
    """A read in a chain. after: what it waits for, each as (place in the list, think time in ns): it arrives
    when the data of all of them was there and each think time is over. Or START. 0 bytes pass no tier: a mark
    in time.
    """

    after: tuple[tuple[int, int], ...]
    offset: int
    nbytes: int
    reader: int = 0


def replay(requests: Sequence[Request], tier: Tier, start_ns: int = 0) -> list[int]:
    """When each read's data is there on a tier of one's choosing, in ns from start_ns on.

    Reads reach the tier in the order of their arrivals there, which need not be that of the list.
    """
    children: list[list[tuple[int, int]]] = [[] for _ in requests]
    arrivals = [start_ns] * len(requests)
    waits = [len(request.after) for request in requests]
    ready: list[tuple[int, int]] = []
    for place, request in enumerate(requests):
        for parent, think_ns in request.after:
            if parent == START:
                arrivals[place] = max(arrivals[place], start_ns + think_ns)
                waits[place] -= 1
            else:
                children[parent].append((place, think_ns))
        if not waits[place]:
            ready.append((arrivals[place], place))
    heapq.heapify(ready)
    done = [0] * len(requests)
    pop, push, reserve = heapq.heappop, heapq.heappush, tier.reserve
    while ready:
        arrival, place = pop(ready)
        request = requests[place]
        if request.nbytes:
            arrival = reserve(arrival, request.offset, request.nbytes, request.reader)
        done[place] = arrival
        for child, think_ns in children[place]:
            comes = arrival + think_ns
            comes = max(comes, arrivals[child])
            waits[child] -= 1
            if waits[child]:
                arrivals[child] = comes
            else:
                push(ready, (comes, child))
    return done
