"""Bounds of what is kept in memory. Not compiled, so that anybody can import them."""

RING_RECORDS = 65_536
"""The newest reads of a mount, 3 MiB of them."""
