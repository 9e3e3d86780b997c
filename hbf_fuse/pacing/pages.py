"""A set of pages, as one bit a page."""

from hbf_fuse.pacing.words import Words

_ALL = (1 << 64) - 1


class Pages:
    """Page numbers from 0 up to `count`. Memory follows the pages that are in it: a bit for each of 4096
    neighbours. Not safe for concurrent callers.
    """

    def __init__(self, count: int) -> None:
        self._words = Words(-(-count // 64))

    def has(self, page: int) -> bool:
        """Whether a page is in the set."""
        return (self._words.get(page // 64) >> (page % 64)) & 1 != 0

    def add(self, first: int, end: int) -> int:
        """Add the pages from `first` up to `end`. Returns how many of them were not in the set. A page for
        which there is no memory is not added.
        """
        fresh = 0
        while first < end:
            at, bit = first // 64, first % 64
            count = min(end - first, 64 - bit)
            known = self._words.get(at)
            new = (_ALL >> (64 - count) << bit) & ~known
            if new and self._words.put(at, known | new):
                fresh += _ones(new)
            first += count
        return fresh


def _ones(word: int) -> int:
    """How many bits are set."""
    if word == _ALL:
        return 64
    ones = 0
    while word:
        word &= word - 1
        ones += 1
    return ones
