"""Hands a mount's files out as memory, and keeps the books of what its readers do with it."""

import contextlib
import ctypes
import dataclasses
import fcntl
import mmap
import os
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import psutil

from hbf_fuse.engine.memory import library
from hbf_fuse.engine.memory.door import Door
from hbf_fuse.engine.memory.follow import Follower
from hbf_fuse.engine.memory.proof import PAGE, Proof
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Node
from hbf_fuse.fs.placement import DRAM
from hbf_fuse.fs.served import Served
from hbf_fuse.host.linux import Descriptor
from hbf_fuse.observe.status import MappedStatus, ResidentStatus
from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.resident import HEADROOM_BYTES, MIN_BYTES, OVERFULL, WINDOW_BYTES
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.expect import MAPPED_CHUNK_BYTES
from hbf_fuse.units import format_size
from hbf_fuse.verdict import Evidence

RECORDS = 1 << 17
_RECORD_BYTES = 48
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_PIECE = 64 << 20
_PROOF_SECONDS = 0.1
_PROOF_COST = 20
"""Looking at the page tables may take one in this many seconds, at most."""

_SPARE_BYTES = 64 << 20


class Service:
    """The memory side of a mount: its files in memory, the tiers' state, a socket for readers.

    Takes the place of the mount's books for mappings: `Served.mapped`. Reads of the mount itself keep those
    that they have, and a link of their own.

    Raises HbfError if the engine is not there, the files do not fit into memory, or a file cannot be read.
    """

    def __init__(self, served: Served) -> None:
        self._twin = library.twin()
        self._served = served
        self._require_memory()
        self._files = [(_filled(served, node), node) for node in served.files]
        self._chunk = served.spec.chunk_bytes or MAPPED_CHUNK_BYTES
        self._control = Descriptor(os.memfd_create("hbf-tier", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        self._state = self._laid_out()
        self._address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._state)))
        self.pacer = served.new_pacer()
        self._follower = self._new_follower()
        layout = served.layout
        self._exempt = sum(self._dram_bytes(place) for place in range(len(self._files)))
        budget = layout.resident_bytes
        most = None if budget is None else int(budget * OVERFULL) + self._exempt
        self._proof = Proof({_identity(fd.number) for fd, _ in self._files}, most)
        self._lock = threading.Lock()
        self.door = Door(self, self._control.number)
        self._proven_at = 0.0

    def _require_memory(self) -> None:
        needed = sum(node.size for node in self._served.files)
        available = psutil.virtual_memory().available
        if needed + _SPARE_BYTES > available:
            raise HbfError(
                f"--engine memory holds the model in memory: {format_size(needed)}, and "
                f"{format_size(available)} are available",
                "serve a smaller model, or use --engine kernel",
            )
        budget = self._served.layout.resident_bytes
        if budget is not None and budget < MIN_BYTES:
            raise HbfError(f"a resident budget (--resident) of {format_size(budget)} thrashes", "give more")

    def _laid_out(self) -> mmap.mmap:
        """The memory that readers share, filled in."""
        twin, served = self._twin, self._served
        specs = served.tiers
        chunks = [-(-node.size // self._chunk) for _, node in self._files]
        regions = [served.regions.get(place, []) for place in range(len(self._files))]
        counts = _numbers(len(chunks), max(1, sum(chunks)), len(specs), sum(map(len, regions)))
        size = twin.hbf_size(counts)
        os.ftruncate(self._control.number, size)
        # A reader could end this process with a file that is cut short.
        fcntl.fcntl(self._control.number, fcntl.F_ADD_SEALS, _SEALS)
        state = mmap.mmap(self._control.number, size)
        at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(state)))
        budget, names = served.layout.resident_bytes, list(specs)
        limit = 0 if budget is None else budget - HEADROOM_BYTES
        pinned = budget - WINDOW_BYTES if budget is not None and served.layout.policy == "pin" else 0
        dram = names.index(DRAM) if DRAM in names else -1
        twin.hbf_lay_out(at, counts, _numbers(self._chunk, limit, pinned, dram))
        chunk = region = 0
        for place, (_, node) in enumerate(self._files):
            info = os.fstat(self._source(node))
            entry = library.File(node.size, chunk, region, len(regions[place]))
            entry.device[1], entry.inode[1] = info.st_dev, info.st_ino
            # Until it is mounted, it is known by its source alone.
            entry.device[0], entry.inode[0] = info.st_dev, info.st_ino
            twin.hbf_set_file(at, ctypes.c_uint64(place), ctypes.byref(entry))
            for start, tier in regions[place]:
                twin.hbf_set_region(at, *map(ctypes.c_uint64, (region, start, tier)))
                region += 1
            chunk += chunks[place]
        # What these places are is read before any reader can write there.
        self._tiers_at, self._records_at = twin.hbf_tiers_at(at), twin.hbf_records_at(at)
        self._tier_bytes = twin.hbf_tier_size()
        self._first_chunks = chunks
        for place, spec in enumerate(specs.values()):
            self._exchanged(at, place, spec, 0)
        return state

    def _exchanged(self, at: ctypes.c_void_p, place: int, spec: TierSpec, floor_ns: int) -> int:
        """How many reads were reserved on the tier that was there."""
        tier, wanted = self._tier(at, place), library.Spec.of(spec)
        return int(self._twin.hbf_exchange(at, tier, ctypes.byref(wanted), ctypes.c_int64(floor_ns)))

    def _source(self, node: Node) -> int:
        self._held = Descriptor(self._served.tree.open(node))
        return self._held.number

    def _tier(self, at: ctypes.c_void_p, place: int) -> ctypes.c_void_p:
        return ctypes.c_void_p((at.value or 0) + self._tiers_at + place * self._tier_bytes)

    def _new_follower(self) -> Follower:
        end = self._records_at + RECORDS * _RECORD_BYTES
        words = memoryview(self._state)[self._records_at : end].cast("q")
        sizes = memoryview(array("q", [node.size for _, node in self._files]))
        return Follower(self.pacer, words, RECORDS, sizes)

    def _dram_bytes(self, place: int) -> int:
        regions, names = self._served.regions.get(place, []), list(self._served.tiers)
        ends = [*(start for start, _ in regions[1:]), self._files[place][1].size]
        return sum(
            end - start for (start, tier), end in zip(regions, ends, strict=False) if names[tier] == DRAM
        )

    def reckon_with(self, floor: Floor, of_tier: Callable[[TierSpec], Floor] | None = None) -> None:
        """Take this floor off every read. Call it before the first read.

        of_tier: measures that of another tier, for `exchange`: it depends on how long readers wait. None: the
        floor stays.
        """
        self._floor_of = of_tier or (lambda _: floor)
        self.pacer.reckon_with(floor)
        self._twin.hbf_set_floor(self._address, ctypes.c_int64(floor.of(0, 0)))

    def known_as(self, device: int) -> None:
        """The files are mounted on this device: their inodes there are the mount's."""
        for place, (_, node) in enumerate(self._files):
            self._twin.hbf_name_file(self._address, *map(ctypes.c_uint64, (place, device, node.ino)))

    # As engine/memory/door.py, Books

    def memory_of(self, file: int) -> int | None:
        """See Books."""
        return self._files[file][0].number if file < len(self._files) else None

    def mapped_by(self, process: int, file: int) -> None:
        """See Books."""
        with self._lock, contextlib.suppress(OSError):
            tasks = Path(f"/proc/{process}/task").iterdir()
            self.pacer.coverage.ready(file, [int(task.name) for task in tasks])

    def read(self) -> bool:
        """See Books."""
        with self._lock:
            return self._read()

    def left(self, process: int, is_last: bool) -> None:
        """See Books."""
        with self._lock:
            self._follower.abandon(0 if is_last else process)

    # As fs/served.py, Mappings; `look` is the door's, too

    def look(self) -> None:
        """See fs/served.py, Mappings."""
        with self._lock:
            self._read(prove=True)

    def exchange(self, spec: TierSpec) -> None:
        """See fs/served.py, Mappings."""
        floor = self._floor_of(spec)
        with self._lock:
            reads = self._exchanged(self._address, 0, spec, floor.of(0, 0))
            self._follower.follow(reads, time.monotonic_ns())
            self.pacer.exchange(spec)
            self.pacer.reckon_with(floor)

    def proven(self, evidence: Evidence) -> Evidence:
        """See fs/served.py, Mappings."""
        arrived = self._arrived()
        return dataclasses.replace(
            evidence,
            altered=self._altered(),
            overfills=evidence.overfills + self._proof.overfills,
            unproven_bytes=max(0, arrived - self._proof.proven),
        )

    def status(self) -> MappedStatus:
        """See fs/served.py, Mappings."""
        return {
            "processes": len(self.door.processes),
            "connected": self.door.connected,
            "given": self.door.given,
            "chunk_bytes": self._chunk,
            "mapped_bytes": self._proof.mapped,
            "proven_bytes": self._proof.proven,
            "altered": self._altered(),
            "overfills": self._proof.overfills,
            "failed": self._counts()[3],
        }

    def resident_status(self) -> ResidentStatus | None:
        """See fs/served.py, Mappings. What is resident is the kernel's word, the rest the readers'."""
        layout = self._served.layout
        if layout.resident_bytes is None:
            return None
        _, _, _, _, _, pinned, dropped = self._counts()
        return {
            "budget_bytes": layout.resident_bytes,
            "policy": layout.policy,
            "resident_bytes": max(0, self._proof.mapped - self._exempt),
            "most_resident_bytes": max(0, self._proof.most_mapped - self._exempt),
            "pinned_bytes": pinned,
            "evicted_bytes": dropped,
        }

    def _counts(self) -> list[int]:
        counts = (ctypes.c_int64 * 7)()
        self._twin.hbf_look(self._address, counts)
        return list(counts)

    def _altered(self) -> int:
        broken, failed = self._counts()[2:4]
        return self._follower.altered + self._follower.lost + self._proof.excess + broken + failed

    def _arrived(self) -> int:
        """Bytes that came at least once, in whole pages."""
        coverage = self.pacer.coverage
        return sum(
            -(-coverage.arrived_bytes(model) // PAGE) * PAGE for model in range(len(self.pacer.models))
        )

    def _read(self, prove: bool = False) -> bool:
        """Read what is new, and look at the page tables if it is time. Whether anything was new."""
        now = time.monotonic()
        pause = max(_PROOF_SECONDS, _PROOF_COST * self._proof.cost_seconds)
        prove = prove or now - self._proven_at > pause
        found = self._proof.measure(self.door.processes) if prove else {}
        # Everything that was mapped by now was reserved before this count.
        fresh = self._follower.follow(self._counts()[0], time.monotonic_ns())
        if found:
            self._proven_at = now
            # Parts of a file's last page, and of each placed region, count as whole pages.
            slack = (self._follower.in_flight() + 2) * self._chunk + PAGE * len(self._files)
            self._proof.judge(found, self._arrived(), slack)
        if fresh:
            self.pacer.coverage.look(())
        return fresh


def _filled(served: Served, node: Node) -> Descriptor:
    """A file's bytes in memory that nobody can change."""
    memory = Descriptor(os.memfd_create("hbf-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    source = Descriptor(served.tree.open(node))
    done = 0
    try:
        while done < node.size:
            # A hole would be filled by the kernel, without the tier: what is copied here are its zeros.
            count = os.sendfile(memory.number, source.number, done, min(_PIECE, node.size - done))
            if not count:
                raise HbfError(f"{node.source} has become shorter", "mount again when it is whole")
            done += count
    except OSError as error:
        raise HbfError(
            f"cannot copy {node.source} into memory: {error.strerror}",
            "serve a smaller model, or use --engine kernel",
        ) from error
    fcntl.fcntl(memory.number, fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_WRITE)
    return memory


def _identity(fd: int) -> tuple[int, int, int]:
    info = os.fstat(fd)
    return os.major(info.st_dev), os.minor(info.st_dev), info.st_ino


def _numbers(*values: int) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * len(values))(*values)
