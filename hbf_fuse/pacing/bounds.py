"""Limits on lateness that is given back. Not compiled, so that any module can import them."""

LIFETIME_NS = 100_000_000
"""Older lateness is forgotten: a reader that returns after a pause must see the full latency again."""

MAX_OWED_NS = 1_000_000_000
"""More than a second is never given back: a suspended machine must not answer with a burst."""

MAX_READERS = 4096
"""Readers whose newest reply is remembered, at most."""

ENDLESS = -1
"""The size of what is read and written for ever."""
