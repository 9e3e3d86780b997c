"""Bounds of the arithmetic. Not compiled, so that anybody can import them."""

FOREVER_NS = 1 << 61
"""73 years: no time goes beyond it, so that the sum of any two fits into 64 bits."""

REMEMBERED_NS = 100_000_000
"""How far back idle time of the link can still be used; as long as lateness is given back."""

MAX_GAPS = 4096
"""Idle times remembered at once; the oldest go first. Twice what small reads leave within REMEMBERED_NS."""

NOTHING = -1
"""The item of an empty heap."""
