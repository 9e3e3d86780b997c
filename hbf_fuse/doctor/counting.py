"""Judges what the kernel can limit and count here."""

from hbf_fuse.doctor.facts import Facts
from hbf_fuse.doctor.line import OK, WARN, Line
from hbf_fuse.doctor.serving import wsl
from hbf_fuse.host.taskstats import SWITCH

_LIMITS = {"io": "blkio", "memory": "memory"}
"""The controllers that limits need, by their names in cgroup v2 and v1."""


def cgroups(facts: Facts) -> Line:
    """Which controllers can limit bandwidth and memory. A controller is in v1 or in v2, never in both."""
    v2, v1 = facts.cgroups.v2 or frozenset(), facts.cgroups.v1
    found = [
        f"{new} (v2)" if new in v2 else f"{old} (v1)"
        for new, old in _LIMITS.items()
        if new in v2 or old in v1
    ]
    missing = [new for new, old in _LIMITS.items() if new not in v2 and old not in v1]
    if not missing:
        return Line("cgroups", OK, ", ".join(found))
    has = f"has {', '.join(found)}, but " if found else ""
    lacking = f"{has}no {' and no '.join(missing)}: `hbf run` cannot limit {'it' if found else 'anything'}"
    if wsl(facts.proc_version):
        return Line(
            "cgroups", WARN, lacking, "kernelCommandLine=cgroup_no_v1=all in %UserProfile%\\.wslconfig"
        )
    if facts.container:
        return Line("cgroups", WARN, lacking, "docker run --privileged --cgroupns=host ...")
    if facts.cgroups.v2 is None:
        return Line("cgroups", WARN, lacking, "mount -t cgroup2 none /sys/fs/cgroup")
    return Line("cgroups", WARN, lacking, "boot with systemd.unified_cgroup_hierarchy=1")


def delay_accounting(facts: Facts) -> Line:
    """Whether the kernel counts how long llama-bench waits."""
    if facts.no_taskstats:
        return Line("delays", WARN, facts.no_taskstats.what, facts.no_taskstats.remedy)
    if facts.delay_accounting == "0" and not facts.root:
        return Line("delays", WARN, f"off ({SWITCH.name})", "sudo sysctl kernel.task_delayacct=1")
    now = {"0": "off, switched on while measuring", None: "always on in this kernel"}
    return Line("delays", OK, now.get(facts.delay_accounting, "on"))


def pressure(facts: Facts) -> Line:
    """Pressure stall information (PSI) of the whole machine."""
    if facts.no_pressure:
        return Line("pressure", WARN, facts.no_pressure.what, facts.no_pressure.remedy)
    return Line("pressure", OK, "counted (PSI)")


JUDGES = (cgroups, delay_accounting, pressure)
