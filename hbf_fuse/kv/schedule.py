"""When decode asks for layers, computes them and writes tokens: the same in virtual time and on a mount."""

from collections import deque

from hbf_fuse.kv.spill import Spill


class Schedule:
    """The steps of `tokens` tokens, from begin_ns on. Whoever reads and writes says when that was done.

    With prefetch a layer is asked for when computing begins that many layers before it, without when the
    layer before it is computed. A token's keys and values are written behind its back, one token's at most:
    the next token ends when they are written. Not safe for concurrent callers.

    asked, written_back: what is to be read and written, as (layer, due ns) and (token, due ns). Layers count
    through all tokens. ends_ns: of each token.
    """

    def __init__(self, spill: Spill, tokens: int, begin_ns: int) -> None:
        self.asked: deque[tuple[int, int]] = deque()
        self.written_back: deque[tuple[int, int]] = deque()
        self.ends_ns: list[int] = []
        self._layers, self._prefetch = spill.layers, spill.prefetch
        self._all = tokens * spill.layers
        self._writes = spill.written_bytes > 0
        self._compute_ns = round(spill.busy_seconds / spill.layers * 1e9)
        self._ready_ns: dict[int, int] = {}
        self._next_asked = self._computed = 0
        self._end_ns = self._written_ns = begin_ns
        self._is_writing = False
        self._ask(max(1, spill.prefetch), begin_ns)

    @property
    def is_over(self) -> bool:
        """Whether every token has ended. The last one's keys and values may still be to be written."""
        return len(self.ends_ns) * self._layers == self._all

    def came(self, layer: int, now_ns: int) -> None:
        """A whole layer was there at now_ns."""
        self._ready_ns[layer] = now_ns
        self._go_on()

    def wrote(self, now_ns: int) -> None:
        """The token that was being written is written."""
        self._written_ns, self._is_writing = now_ns, False
        self._go_on()

    def _go_on(self) -> None:
        """Compute what is there, up to a token that waits for the writes of the one before."""
        while True:
            if self._computed % self._layers == 0 and self._computed > len(self.ends_ns) * self._layers:
                if self._is_writing:
                    return
                self._end_token()
            if self._computed not in self._ready_ns:
                return
            start_ns = max(self._end_ns, self._ready_ns.pop(self._computed))
            self._end_ns = start_ns + self._compute_ns
            self._computed += 1
            if self._prefetch:
                self._ask(self._computed + self._prefetch, start_ns)
            elif self._computed % self._layers:
                self._ask(self._computed + 1, self._end_ns)

    def _end_token(self) -> None:
        self._end_ns = max(self._end_ns, self._written_ns)
        self.ends_ns.append(self._end_ns)
        if self._writes:
            self._is_writing = True
            self.written_back.append((len(self.ends_ns) - 1, self._end_ns))
        if not self._prefetch:
            self._ask(self._computed + 1, self._end_ns)

    def _ask(self, until: int, due_ns: int) -> None:
        """Ask for the layers before `until` that were not asked for."""
        while self._next_asked < min(until, self._all):
            self.asked.append((self._next_asked, due_ns))
            self._next_asked += 1


class Round:
    """Where tokens are written: in `size` bytes, round and round. So the newest takes the oldest's place.

    chunk_bytes: of a write, at most. begin: where the first one goes.
    """

    def __init__(self, size: int, chunk_bytes: int, begin: int = 0) -> None:
        self._size, self._chunk = size, chunk_bytes
        self._at = begin % size if size else 0

    def next(self, nbytes: int) -> list[tuple[int, int]]:
        """The writes of the next `nbytes`, as (offset, bytes)."""
        pieces = []
        while nbytes:
            size = min(nbytes, self._chunk, self._size - self._at)
            pieces.append((self._at, size))
            self._at = (self._at + size) % self._size
            nbytes -= size
        return pieces
