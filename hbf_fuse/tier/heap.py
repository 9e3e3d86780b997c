"""A bounded heap: the smallest entry first."""

from array import array

from hbf_fuse.tier.bounds import NOTHING

_NEVER = (1 << 63) - 1


class Heap:
    """Entries of a key and an item, 64 bits each, ordered by (key, item), as heapq orders them.

    count: number of entries, at most `room`.
    """

    def __init__(self, room: int) -> None:
        self.count = 0
        self._room = room
        self._keys = array("q", bytes(8 * room))
        self._items = array("q", bytes(8 * room))

    def push(self, key: int, item: int) -> bool:
        """Add an entry. False, and no change, if there is no room."""
        if self.count == self._room:
            return False
        self.count += 1
        self._rise(self.count - 1, key, item)
        return True

    def pop(self) -> int:
        """Remove the first entry. Returns its item; NOTHING if there is none."""
        if not self.count:
            return NOTHING
        item = self._items[0]
        self._take(0)
        return item

    def first_key(self) -> int:
        """The smallest key; the largest signed 64-bit number if there is none."""
        return self._keys[0] if self.count else _NEVER

    def item(self, at: int) -> int:
        """The item at a place from 0 to count - 1, in no order."""
        return self._items[at]

    def remove(self, item: int) -> bool:
        """Remove the entry with this item. False if there is none. Searches all entries."""
        for at in range(self.count):
            if self._items[at] == item:
                self._take(at)
                return True
        return False

    def _take(self, at: int) -> None:
        """Remove the entry at a place: the last entry moves there, then up or down."""
        self.count -= 1
        if at == self.count:
            return
        key, item = self._keys[self.count], self._items[self.count]
        child = self._smaller_child(at)
        while child < self.count and self._before(self._keys[child], self._items[child], key, item):
            self._keys[at], self._items[at] = self._keys[child], self._items[child]
            at = child
            child = self._smaller_child(at)
        self._rise(at, key, item)

    def _rise(self, at: int, key: int, item: int) -> None:
        """Put an entry at a free place, or above it."""
        while at:
            parent = (at - 1) // 2
            if not self._before(key, item, self._keys[parent], self._items[parent]):
                break
            self._keys[at], self._items[at] = self._keys[parent], self._items[parent]
            at = parent
        self._keys[at], self._items[at] = key, item

    def _smaller_child(self, at: int) -> int:
        """The place of the child that comes first; `count` or beyond if there is none."""
        child = 2 * at + 1
        if child + 1 < self.count and self._before(
            self._keys[child + 1], self._items[child + 1], self._keys[child], self._items[child]
        ):
            return child + 1
        return child

    def _before(self, key: int, item: int, other_key: int, other_item: int) -> bool:
        return key < other_key or (key == other_key and item < other_item)
