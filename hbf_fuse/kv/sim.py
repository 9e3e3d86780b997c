"""KV spill in virtual time, on the very device that mounts emulate."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from hbf_fuse.documents import Row
from hbf_fuse.errors import HbfError
from hbf_fuse.kv import endurance
from hbf_fuse.kv.schedule import Round, Schedule
from hbf_fuse.kv.spill import Spill, fastest_seconds, layer_read_seconds, token_seconds, write_seconds
from hbf_fuse.tier import Tier, TierSpec, expect
from hbf_fuse.tier.bounds import FOREVER_NS
from hbf_fuse.tier.window import Window

TOKENS = 64
TOKENS_BEYOND = 10
"""How many tokens must be slower than a percentile for it to mean anything."""

WARM_UP = 2
"""Tokens before the pipeline is as full as it will be; they are not counted."""

MOST_PAGES = 1 << 21
"""With program times, tokens are written round and round in so many pages at most: the medium is filled once
before anything is counted.
"""

_MOST_WRITES = 1 << 24
_NO_WRITE = (1 << 63) - 1


def tokens_for(percentile: float) -> int:
    """How many tokens must be simulated for a percentile of them to mean anything; TOKENS at least."""
    rarer = min(percentile, 100 - percentile) / 100
    return max(TOKENS, math.ceil(TOKENS_BEYOND / rarer))


@dataclass(frozen=True)
class Written:
    """What decoding has written, and what that has cost. medium_bytes: of the medium that takes it.
    reads_behind, behind_seconds: reads that waited for a program or an erase, and how long.
    """

    nbytes: int
    programmed_bytes: int
    medium_bytes: int
    reads_behind: int = 0
    behind_seconds: float = 0.0

    @property
    def amplification(self) -> float:
        """Bytes programmed for each byte written."""
        return self.programmed_bytes / self.nbytes if self.nbytes else 1.0


@dataclass(frozen=True)
class Simulated:
    """seconds: of each counted token. reads: simulated in all."""

    spill: Spill
    spec: TierSpec
    seconds: tuple[float, ...]
    reads: int
    written: Written

    def tps(self, percentile: float = 50) -> float:
        """Tokens/s that all but `percentile` percent of the tokens reach."""
        return float(1 / np.percentile(self.seconds, 100 - percentile))

    @property
    def bound(self) -> str:
        """What takes longest for a token: compute, latency, bandwidth, planes (sensing), or write."""
        spill, spec = self.spill, self.spec
        transfer = spill.step_bytes / (spec.bandwidth_mbps * 1e6) if spec.bandwidth_mbps else 0.0
        read = layer_read_seconds(spill, spec) * spill.layers * spill.batch
        parts = {
            "compute": spill.busy_seconds,
            "bandwidth": transfer,
            "latency": max(0.0, read - transfer),
            "planes": spill.step_bytes * spec.t_read_us / 1e6 / (spec.planes * spec.page_bytes)
            if spec.t_read_us
            else 0.0,
            "write": write_seconds(spill, spec),
        }
        return max(parts, key=lambda name: parts[name])

    @property
    def written_gb_per_day(self) -> float:
        """GB that all streams write in a day of decoding."""
        return self.spill.written_bytes / float(np.mean(self.seconds)) * 86_400 / 1e9

    def to_dict(self, capacity_gb: float | None = None) -> Row:
        """Speed at percentiles, times per token in ms, and the closed forms beside them; of a tier that has
        writes of its own, what they cost. capacity_gb: of the flash that wears; else what is simulated of it.
        """
        fastest = fastest_seconds(self.spill, self.spec)
        exact = token_seconds(self.spill, self.spec)
        mean = float(np.mean(self.seconds))
        return {
            "mbps": self.spec.bandwidth_mbps,
            "lat_ms": self.spec.latency_ms,
            "jitter": self.spec.jitter,
            "context": self.spill.context,
            "spilled_tokens": self.spill.spilled_tokens,
            "batch": self.spill.batch,
            "bytes_per_token": self.spill.token_bytes,
            **({"constant_bytes": self.spill.constant_bytes} if self.spill.constant_bytes else {}),
            **{f"tps_p{share}": self.tps(share) for share in (5, 50, 95)},
            **{f"token_ms_p{p}": self._token_ms(p) for p in (50, 95, 99)},
            "tps_mean": 1 / mean,
            "tps_all_streams": self.spill.batch / mean,
            "closed_form_tps": 1 / exact if exact else None,
            "ceiling_tps": 1 / fastest if fastest else None,
            "departs_pct": (fastest / mean - 1) * 100 if fastest else None,
            "bound": self.bound,
            "filled_pct": self.filled_pct,
            "prefill_written_gb": self.spill.prefill_written_bytes / 1e9,
            "written_gb_per_day": self.written_gb_per_day,
            **(self._writes(capacity_gb) if self.spec.write_mbps or self.spec.t_prog_us else {}),
        }

    def _writes(self, capacity_gb: float | None) -> Row:
        """What writes cost. days_left: until every block has had its cycles; None if they are unknown."""
        written, cycles = self.written, self.spec.endurance
        capacity = capacity_gb or written.medium_bytes / 1e9
        years = endurance.years(capacity, cycles, self.written_gb_per_day, written.amplification)
        behind = written.reads_behind
        return {
            "write_amplification": written.amplification,
            "reads_behind_pct": behind / self.reads * 100 if self.reads else 0.0,
            "reads_behind_ms": written.behind_seconds / behind * 1e3 if behind else None,
            "days_left": years * endurance.DAYS_A_YEAR if cycles and written.nbytes else None,
        }

    @property
    def filled_pct(self) -> float | None:
        """Share of the link's bandwidth that chunks of this size, so many in flight, can have of this tier;
        None without a link.
        """
        if not self.spec.bandwidth_mbps:
            return None
        rate = expect.closed_loop(self.spec, self.spill.chunk_bytes, self.spill.depth)
        return rate / self.spec.bandwidth_mbps * 100 if rate else None

    def _token_ms(self, percentile: int) -> float | None:
        """None where too few tokens were simulated: a percentile needs ten beyond it."""
        if len(self.seconds) * (100 - percentile) / 100 < TOKENS_BEYOND:
            return None
        return float(np.percentile(self.seconds, percentile)) * 1e3


def row(spill: Spill, spec: TierSpec, tokens: int, capacity_gb: float | None) -> Row:
    """What `simulate` says, as a row; see Simulated.to_dict."""
    return simulate(spill, spec, tokens).to_dict(capacity_gb)


def simulate(spill: Spill, spec: TierSpec, tokens: int = TOKENS, room_bytes: int | None = None) -> Simulated:
    """Decode `tokens` tokens of every stream, and write their keys and values back. Deterministic for the
    tier's seed. HbfError where no token takes any time, or where they take decades.

    room_bytes: of what can be written, as the --kv of a mount where the spilled context was written once.
    Left out, the context fills what can be written, and was written until every plane collects garbage. It
    matters with program times only.
    """
    if spill.step_bytes > FOREVER_NS:
        raise HbfError(
            f"a step reads {spill.step_bytes:.3g} bytes", f"at most {FOREVER_NS:.3g} are simulated"
        )
    device, schedule = _Device(spill, spec, room_bytes), Schedule(spill, tokens + WARM_UP, 0)
    while not schedule.is_over:
        device.go_on(schedule)
        if schedule.ends_ns and schedule.ends_ns[-1] >= FOREVER_NS:
            raise HbfError("decoding would take decades: this tier is too slow for so large a context")
    if not schedule.ends_ns[-1]:
        raise HbfError("neither reading nor computing takes any time: there is no speed to tell")
    counted = np.diff(np.array(schedule.ends_ns, dtype=float))[WARM_UP - 1 :] / 1e9
    parts = [nbytes for _, nbytes in spill.ranges(0)]
    reads = (tokens + WARM_UP) * spill.layers * sum(-(-nbytes // spill.chunk_bytes) for nbytes in parts)
    return Simulated(spill, spec, tuple(counted.tolist()), reads, device.written())


class _Device:
    """The tier in virtual time: reads of what a schedule asks for, and one write in flight beside them. What
    begins first goes first; of a read and a write at the same time, the read.
    """

    def __init__(self, spill: Spill, spec: TierSpec, room_bytes: int | None) -> None:
        self._spill = spill
        round_bytes = round_bytes_of(spill, spec)
        self._medium_bytes = room_bytes or round_bytes
        self._tier = Tier(spec, self._medium_bytes if round_bytes else 0)
        begin = self._filled(round_bytes, until_collected=room_bytes is None)
        self._round = Round(round_bytes, spill.write_chunk_bytes, begin)
        self._reading, self._writing = Window(self._tier, spill.depth), Window(self._tier, 1)
        self._ranges: deque[tuple[int, int]] = deque()
        self._ready_ns = 0
        self._pieces: deque[tuple[int, int]] = deque()
        self._written_bytes = 0

    def go_on(self, schedule: Schedule) -> None:
        """Read the layer that is next, up to the next write; or else write a piece."""
        until_ns = _NO_WRITE
        if schedule.written_back:
            if not self._pieces:
                self._pieces.extend(self._round.next(self._spill.written_bytes))
            until_ns = max(schedule.written_back[0][1], self._writing.free_ns())
        if schedule.asked and self._read(*schedule.asked[0], until_ns):
            layer, _ = schedule.asked.popleft()
            schedule.came(layer, self._ready_ns)
        elif self._pieces:
            self._write(schedule)

    def written(self) -> Written:
        """What was written so far, and what that has cost."""
        planes, spec = self._tier.planes, self._tier.spec
        if planes is None or planes.translation is None:
            return Written(self._written_bytes, self._written_bytes, self._medium_bytes)
        return Written(
            self._written_bytes,
            planes.bytes_programmed,
            planes.translation.physical_pages * spec.page_bytes,
            planes.reads_behind,
            planes.behind_ns / 1e9,
        )

    def _read(self, layer: int, due_ns: int, until_ns: int) -> bool:
        """Read what is left of a layer. Whether that was all of it: else a write is to begin before."""
        if not self._ranges:
            self._ranges.extend(self._spill.ranges(layer % self._spill.layers))
            self._ready_ns = due_ns
        while self._ranges:
            offset, nbytes = self._ranges[0]
            came_ns = self._reading.read_until(until_ns, due_ns, offset, nbytes, self._spill.chunk_bytes)
            self._ready_ns = max(self._ready_ns, came_ns)
            moved = self._reading.moved
            if moved < nbytes:
                self._ranges[0] = offset + moved, nbytes - moved
                return False
            self._ranges.popleft()
        return True

    def _write(self, schedule: Schedule) -> None:
        _, due_ns = schedule.written_back[0]
        offset, nbytes = self._pieces.popleft()
        done_ns = self._writing.write(due_ns, offset, nbytes, nbytes)
        self._written_bytes += nbytes
        if not self._pieces:
            schedule.written_back.popleft()
            schedule.wrote(done_ns)

    def _filled(self, nbytes: int, until_collected: bool) -> int:
        """Write so many bytes once, in no time, or round and round until every plane collects garbage.
        Returns where the next write goes.
        """
        planes, spec = self._tier.planes, self._tier.spec
        translation = planes.translation if planes else None
        if translation is None:
            return 0
        pages = -(-nbytes // spec.page_bytes)
        for count in range(pages if not until_collected else _MOST_WRITES):
            if until_collected and translation.erases >= spec.planes:
                return count % pages * spec.page_bytes
            translation.write(count % pages)
        if until_collected:
            raise HbfError(
                f"{spec.planes} planes with blocks of {spec.block_pages} pages take more than {_MOST_WRITES} "
                "writes until they collect garbage",
                "simulate fewer planes (--planes), smaller blocks (--block) or another --spare",
            )
        return 0


def round_bytes_of(spill: Spill, spec: TierSpec) -> int:
    """In how many bytes tokens are written, round and round: the spilled context of every stream in whole
    units; of a very large one, with program times, a part that has the same write amplification.
    """
    if not spill.written_bytes:
        return 0
    whole = -(-spill.cache_bytes // spill.write_unit) * spill.write_unit
    most = MOST_PAGES * spec.page_bytes // spill.write_unit * spill.write_unit
    return min(whole, most) if spec.t_prog_us else whole
