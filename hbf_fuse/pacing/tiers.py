"""The tiers of a mount by their places, and which of them holds what of a file."""

from array import array
from collections.abc import Mapping, Sequence

from hbf_fuse.tier.device import Tier


class Rank:
    """A tier in its place, followed by the others: compiled code can walk along these without the
    interpreter.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.tier = tiers[0]
        self.nbytes = 0
        """Of finished reads."""
        self.throttled = self.tier.spec.throttled
        self.following = Rank(tiers[1:]) if len(tiers) > 1 else None

    def exchange(self, tier: Tier, throttled: bool) -> None:
        """Put another tier into this place. throttled: whether reads wait for it."""
        self.tier, self.throttled = tier, throttled

    def reserve(self, place: int, arrival_ns: int, offset: int, nbytes: int) -> int:
        """As Tier.reserve, by the tier in a place."""
        if place and self.following is not None:
            return self.following.reserve(place - 1, arrival_ns, offset, nbytes)
        return self.tier.reserve(arrival_ns, offset, nbytes)

    def carried_ns(self, place: int) -> int:
        """As Tier has it, of the tier in a place."""
        if place and self.following is not None:
            return self.following.carried_ns(place - 1)
        return self.tier.carried_ns

    def served(self, place: int, nbytes: int) -> None:
        """The tier in a place has brought this much."""
        if place and self.following is not None:
            self.following.served(place - 1, nbytes)
        else:
            self.nbytes += nbytes

    def is_throttled(self, place: int) -> bool:
        """Whether reads wait for the tier in a place."""
        if place and self.following is not None:
            return self.following.is_throttled(place - 1)
        return self.throttled

    def any_throttled(self) -> bool:
        """Whether reads wait for any of the tiers from this one on."""
        return self.throttled or (self.following is not None and self.following.any_throttled())

    def bytes_by_place(self) -> list[int]:
        """What the tiers from this one on have brought."""
        return [self.nbytes, *(self.following.bytes_by_place() if self.following else [])]


class Regions:
    """Where files lie. A file without regions is in the tier of place 0 as a whole.

    placed: by the place of a file, its regions as (first byte, place of the tier), in order, each up to the
    next one or the end of the file.
    """

    def __init__(self, files: int, placed: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        self.tier = 0
        """Of the piece that was asked for last."""
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
        """Up to where, and at most to `end`, the bytes from offset on lie in one tier; `tier` is that one."""
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
