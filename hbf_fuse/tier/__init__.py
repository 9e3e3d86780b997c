"""The emulated device: pure arithmetic on integers. No clock, no I/O, no other imports of hbf_fuse."""

from hbf_fuse.tier.device import Tier
from hbf_fuse.tier.errors import SpecError
from hbf_fuse.tier.spec import TierSpec

__all__ = ["SpecError", "Tier", "TierSpec"]
