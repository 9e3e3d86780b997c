"""The device in virtual time: what reads that wait for each other would have taken on another tier."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from hbf_fuse.tier.device import Tier

START = -1
"""The parent of a read that waits for none: its think time counts from the beginning."""


@dataclass(frozen=True, slots=True)
class Request:
    """A read in a chain. It arrives think_ns after its parent's data was there. parent: a place in the list,
    before its own, or START. 0 bytes pass no tier: a mark in time.
    """

    parent: int
    think_ns: int
    offset: int
    nbytes: int
    reader: int = 0


def replay(requests: Sequence[Request], tier: Tier, start_ns: int = 0) -> list[int]:
    """When each read's data is there on a tier of one's choosing, in ns from start_ns on.

    Reads reach the tier in the order of their arrivals there, which need not be that of the list.
    """
    children: list[list[int]] = [[] for _ in requests]
    ready: list[tuple[int, int]] = []
    for place, request in enumerate(requests):
        if request.parent == START:
            ready.append((start_ns + request.think_ns, place))
        else:
            children[request.parent].append(place)
    heapq.heapify(ready)
    done = [0] * len(requests)
    pop, push, reserve = heapq.heappop, heapq.heappush, tier.reserve
    while ready:
        arrival, place = pop(ready)
        request = requests[place]
        if request.nbytes:
            arrival = reserve(arrival, request.offset, request.nbytes, request.reader)
        done[place] = arrival
        for child in children[place]:
            push(ready, (arrival + requests[child].think_ns, child))
    return done
