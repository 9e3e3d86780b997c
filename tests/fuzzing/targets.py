"""Every target by its name."""

from fuzzing import kernel, models, sweeps, tiers, traces

TARGETS = {target.name: target for room in (kernel, models, tiers, sweeps, traces) for target in room.TARGETS}
