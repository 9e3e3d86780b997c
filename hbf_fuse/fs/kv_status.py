"""What stats.json says of kv/: how full it is, what it took, what that cost the medium."""

import time

from hbf_fuse.fs.kv import Region
from hbf_fuse.fs.served import Served
from hbf_fuse.observe.status import KvStatus, WearStatus
from hbf_fuse.pacing.pacer import Pacer

_DAY_NS = 86_400 * 10**9


def of(region: Region, served: Served) -> KvStatus:
    """As stats.json holds it."""
    pacer = served.pacer
    counters = pacer.counted()
    planes = pacer.tiers.tier.planes
    programmed = planes.bytes_programmed if planes and served.spec.t_prog_us else counters.bytes_written
    status: KvStatus = {
        "size_bytes": region.real.room.size,
        "used_bytes": region.real.room.used,
        "files": region.files,
        "is_kept": region.real.kept.is_kept,
        "writes": counters.writes,
        "bytes_written": counters.bytes_written,
        "bytes_read": pacer.kv_read_bytes,
        "bytes_programmed": programmed,
        "write_amplification": programmed / counters.bytes_written if counters.bytes_written else None,
        "reads_behind": planes.reads_behind if planes else 0,
        "reads_behind_seconds": planes.behind_ns / 1e9 if planes else 0.0,
        "days_left": _days_left(region, served, programmed),
    }
    if wear := _wear(pacer):
        status["wear"] = wear
    if pacer.kv_since_ns:
        status["staging"] = served.judged(pacer, pacer.kv_model).status()
    return status


def _wear(pacer: Pacer) -> WearStatus | None:
    planes = pacer.tiers.tier.planes
    if planes is None or planes.translation is None:
        return None
    least, mean, most = planes.translation.wear()
    return {
        "erases": planes.translation.erases,
        "least": least,
        "mean": mean,
        "most": most,
        "spare_pct": planes.translation.spare_pct,
    }


def _days_left(region: Region, served: Served, programmed: int) -> float | None:
    """Until every block has had its cycles, if it goes on as it has since the first write or read; None if
    nothing was written or the cycles are unknown.
    """
    spec, passed_ns = served.spec, time.monotonic_ns() - served.pacer.kv_since_ns
    if not (spec.endurance and programmed and served.pacer.kv_since_ns and passed_ns > 0):
        return None
    planes, capacity = served.pacer.tiers.tier.planes, region.real.room.size
    if planes and planes.translation:
        capacity = planes.translation.physical_pages * spec.page_bytes
    return (spec.endurance * capacity - programmed) / programmed * passed_ns / _DAY_NS
