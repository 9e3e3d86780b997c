"""What a mount says of itself: `.hbf/spec.json` and `.hbf/stats.json`. Times are CLOCK_MONOTONIC in ns."""

from typing import Any, Literal, NotRequired

# As pydantic needs it before Python 3.12.
from typing_extensions import TypedDict

State = Literal["agrees", "unsure", "off"]
"""How a first pass was judged; see verdict/rules.py."""


class Percentiles(TypedDict):
    """In ns."""

    p50: int
    p90: int
    p99: int
    max: int


class FloorStatus(TypedDict):
    """The floor that was measured, see pacing/floor.py. fixed_ns: by the ns that a reader has waited."""

    fixed_ns: dict[str, int]
    ns_per_mib: int
    known: bool


class ReadCounts(TypedDict):
    """All reads and writes of a mount; see counters.py. wait_seconds sums over them, so it can exceed wall
    time.
    """

    reads: int
    bytes_read: int
    writes: int
    bytes_written: int
    in_flight: int
    in_flight_max: int
    largest_read_bytes: int
    interrupted: int
    failed: int
    wait_seconds: float
    sending_ns_per_mib: int
    unseen_seconds: float
    nameless: int
    exchanges: int
    overfills: int
    stops: int
    wakes: int
    woken_late_seconds: float
    floored_seconds: float
    first_arrival_ns: int
    last_done_ns: int
    lateness_ns: Percentiles
    backlog_ns: Percentiles


class ReaderStatus(TypedDict):
    """Processes of one name, and what they asked for. pid: of the one that was seen last; 0 if unknown."""

    comm: str
    pid: int
    reads: int
    bytes: int


class PacerStatus(ReadCounts):
    """Besides, what the tiers did. tier_bytes: by the tier's name. readers: the greatest first. The last two
    with planes only.
    """

    tier_bytes: dict[str, int]
    readers: list[ReaderStatus]
    forgiven_seconds: float
    floor: FloorStatus
    flash_bytes_sensed: NotRequired[int]
    read_amplification: NotRequired[float]


class ResidentStatus(TypedDict):
    """The resident budget and what it holds."""

    budget_bytes: int
    policy: str
    resident_bytes: int
    most_resident_bytes: int
    pinned_bytes: int
    evicted_bytes: int


class MappedStatus(TypedDict):
    """Mappings under the memory engine. processes: that are connected; connected: that ever were.
    given: how often one was given a file's memory, to map it. mapped_bytes: in the kernel's page tables of
    them all at the last look. proven_bytes: how many of the bytes that came the kernel has confirmed.
    altered: records and looks that contradict the server's own. overfills: looks that found more mapped than
    the budget allows. failed: chunks that could not be mapped as a whole.
    """

    processes: int
    connected: int
    given: int
    chunk_bytes: int
    mapped_bytes: int
    proven_bytes: int
    altered: int
    overfills: int
    failed: int


class CoverageStatus(TypedDict):
    """How far a file has come. Staging is over when arrived_bytes is size."""

    size: int
    arrived_bytes: int
    complete: bool
    first_arrival_ns: int
    complete_ns: int
    complete_deadline_ns: int


class StagingStatus(TypedDict):
    """A file's first pass as verdict/rules.py judges it. Rates are decimal MB/s; None as there."""

    seconds: float
    achieved_mbps: float
    model_mbps: float | None
    error_pct: float | None
    bound_pct: float | None
    verdict: State
    reasons: list[str]
    shares: dict[str, float]
    evidence: dict[str, int | float | bool | None]
    valid: bool
    why: str


class FileStatus(CoverageStatus):
    """One file that was read."""

    staging: StagingStatus


class WearStatus(TypedDict):
    """Erases of all blocks, and the least, the mean and the most of a block. spare_pct: over-provisioning."""

    erases: int
    least: int
    mean: float
    most: int
    spare_pct: float


class KvStatus(TypedDict):
    """kv/. used_bytes: by files, in whole blocks. is_kept: whether its files are there after the unmount.
    bytes_programmed: what the medium has programmed for bytes_written; write_amplification: the one over the
    other. reads_behind: reads that waited for a program or an erase. days_left: until worn out at this rate,
    None if unknown. wear: with program times only. staging: the verdict on all that was read and written
    there, once there is any; pauses of more than 0.1 s left out.
    """

    size_bytes: int
    used_bytes: int
    files: int
    is_kept: bool
    writes: int
    bytes_written: int
    bytes_read: int
    bytes_programmed: int
    write_amplification: float | None
    reads_behind: int
    reads_behind_seconds: float
    days_left: float | None
    wear: NotRequired[WearStatus]
    staging: NotRequired[StagingStatus]


class PhaseStatus(TypedDict):
    """What was read in a phase that the reader named."""

    seconds: float
    reads: int
    bytes_read: int


class Stats(PacerStatus):
    """stats.json. starved_seconds: how long the server's threads wanted a CPU. phase, phases: the current one
    and all, if the reader names any. trace_stopped: why the trace lacks reads, if it does. broken: threads of
    the server that ended with an error, and with which.
    """

    now_ns: int
    starved_seconds: float
    phase: NotRequired[str]
    phases: NotRequired[dict[str, PhaseStatus]]
    resident: NotRequired[ResidentStatus]
    mapped: NotRequired[MappedStatus]
    kv: NotRequired[KvStatus]
    trace_stopped: NotRequired[str]
    broken: NotRequired[list[str]]
    files: dict[str, FileStatus]


class ServedFile(TypedDict):
    """A file by its path in the mount."""

    path: str
    size: int


class MountFacts(TypedDict, total=False):
    """What the mounting side knows. uncompiled: why, if so. start_time: the server's, in clock ticks since
    boot. io_max: the disk and the limits in force. memory_socket: where the memory engine hands out its
    files.
    """

    engine: str
    uncompiled: str
    pid: int
    pid_namespace: int
    start_time: int | None
    version: str
    readahead_kib: int
    fuse_protocol: str
    fuse_protocol_kernel: str
    io_max: dict[str, Any]
    memory_socket: str


class Spec(MountFacts):
    """spec.json, and the header of traces. files: by inode number, the first thousand."""

    tier: dict[str, Any]
    tiers: dict[str, dict[str, Any]]
    source: str
    files: dict[str, ServedFile]
