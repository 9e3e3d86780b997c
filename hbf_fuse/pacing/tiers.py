"""The tiers of a mount by their places, and which tier holds which part of a file."""

from array import array
from collections.abc import Mapping, Sequence

from hbf_fuse.tier.device import Tier


class Rank:
    """A tier at its place, linked to the following ones: compiled code can walk this list without the
    interpreter.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.tier = tiers[0]
        self.nbytes = 0
        """Bytes of finished reads."""
        self.throttled = self.tier.spec.throttled
        self.throttles_writes = self.tier.spec.throttles_writes
        self.following = Rank(tiers[1:]) if len(tiers) > 1 else None

    def exchange(self, tier: Tier, throttled: bool, throttles_writes: bool) -> None:
        """Put another tier into this place. throttled, throttles_writes: whether reads and writes wait for
        it.
        """
        self.tier, self.throttled, self.throttles_writes = tier, throttled, throttles_writes

    def reserve(self, place: int, arrival_ns: int, offset: int, nbytes: int) -> int:
        """Tier.reserve of the tier at a place."""
        if place and self.following is not None:
            return self.following.reserve(place - 1, arrival_ns, offset, nbytes)
        return self.tier.reserve(arrival_ns, offset, nbytes)

    def write(self, arrival_ns: int, offset: int, nbytes: int) -> int:
        """Tier.write of this tier."""
        return self.tier.write(arrival_ns, offset, nbytes)

    def carried_ns(self, place: int) -> int:
        """Tier.carried_ns of the tier at a place."""
        if place and self.following is not None:
            return self.following.carried_ns(place - 1)
        return self.tier.carried_ns

    def served(self, place: int, nbytes: int) -> None:
        """The tier at a place has served this many bytes."""
        if place and self.following is not None:
            self.following.served(place - 1, nbytes)
        else:
            self.nbytes += nbytes

    def is_throttled(self, place: int) -> bool:
        """Whether reads wait for the tier at a place."""
        if place and self.following is not None:
            return self.following.is_throttled(place - 1)
        return self.throttled

    def any_throttled(self) -> bool:
        """Whether reads or writes wait for this tier, or reads for any after it."""
        return self.throttles_writes or (self.following is not None and self.following.any_throttled())

    def bytes_by_place(self) -> list[int]:
        """Bytes served by this tier and by each after it."""
        return [self.nbytes, *(self.following.bytes_by_place() if self.following else [])]


class Regions:
    """Which tier holds which part of a file. A file without regions is entirely in the tier at place 0.

    placed: by the place of a file, its regions as (first byte, place of the tier), in order, each up to the
    next one or the end of the file.
    """

    def __init__(self, files: int, placed: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        self.tier = 0
        """Tier of the piece that was last asked for."""
        self._first = array("q", bytes(8 * (files + 1)))
        starts: list[int] = []
        tiers: list[int] = []
        for file in range(files):
            self._first[file] = len(starts)
            for start, tier in placed.get(file, ()):
                starts.append(start)
                tiers.append(tier)
        self._first[files] = len(starts)
        self._starts, self._tiers = array("q", starts), array("q", tiers)

    def piece_end(self, file: int, offset: int, end: int) -> int:
        """End of the piece from `offset` on that is in one tier, at most `end`. Sets `tier`."""
        low, high = self._first[file], self._first[file + 1]
        if low == high:
            self.tier = 0
            return end
        while high - low > 1:
            middle = (low + high) // 2
            if self._starts[middle] <= offset:
                low = middle
            else:
                high = middle
        self.tier = self._tiers[low]
        if low + 1 == self._first[file + 1]:
            return end
        return min(end, self._starts[low + 1])
