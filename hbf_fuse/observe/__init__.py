"""What a mount has done: counters and percentiles, cheap enough for every read."""

from hbf_fuse.observe.counters import Counters
from hbf_fuse.observe.histogram import Histogram

__all__ = ["Counters", "Histogram"]
