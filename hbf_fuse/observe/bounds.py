"""Bounds of what is kept in memory. Not compiled, so that any module can import them."""

RING_RECORDS = 65_536
"""The newest reads of a mount, 3 MiB of them."""

MAX_READER_NAMES = 64
"""Names of reading processes that are told apart; the others are counted together."""

MOST_THREADS = 1024
"""Readers that are told apart at a time."""

MOST_NAMED_AT_ONCE = 32
"""Readers whose processes are looked up in one go: about a millisecond."""

DIRECT, WRITES, KV = 1, 2, 4
"""How a request came, as flags: past the page cache; a write; of a file in kv/."""
