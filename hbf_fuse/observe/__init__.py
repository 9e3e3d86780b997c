"""What a mount has done: counters and percentiles, cheap enough for every read."""

from hbf_fuse.observe.counters import Counters
from hbf_fuse.observe.cpu_wait import CpuWait
from hbf_fuse.observe.histogram import Histogram
from hbf_fuse.observe.trace import Recorder

__all__ = ["Counters", "CpuWait", "Histogram", "Recorder"]
