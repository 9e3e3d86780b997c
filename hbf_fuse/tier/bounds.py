"""Bounds of the arithmetic. Not compiled, so that any module can import them."""

FOREVER_NS = 1 << 61
"""73 years, the largest time: the sum of any two fits into 64 bits."""

REMEMBERED_NS = 100_000_000
"""How far back idle time of the link can still be used; the same as how long lateness is given back."""

MAX_GAPS = 4096
"""Idle times remembered at once; the oldest are dropped first. Twice what small reads leave within
REMEMBERED_NS.
"""

NOTHING = -1
"""Returned as the item of an empty heap."""

NOWHERE = -1
"""The place of a page that was never written."""
