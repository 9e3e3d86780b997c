"""Every target by its name."""

from fuzzing import kernel, loop, models, sweeps, tiers, traces

TARGETS = {
    target.name: target for room in (kernel, loop, models, tiers, sweeps, traces) for target in room.TARGETS
}
