"""Random reads through a pacer in virtual time, and a digest of all its answers.

python tests/accounts.py    prints the digest
"""

import hashlib
import json
import random

from hbf_fuse.pacing.floor import Floor
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.pacing.resident import Resident
from hbf_fuse.tier import TierSpec

READS = 20_000
SIZES = (30 << 20, 5_000_001, 4096, 0)
NO_THREAD = 1 << 22
"""From this id on, there are no threads: their processes are as unknown on every machine."""


def digest(seed: int, policy: str) -> str:
    """SHA-256 over due times, pages dropped and statistics. Random numbers come from random() alone."""
    draw = random.Random(seed).random
    pacer = Pacer(
        {"hbf": TierSpec(3000, 0.2, depth=8), "slow": TierSpec(700, 1.5), "dram": TierSpec()},
        [(10 + place, size) for place, size in enumerate(SIZES)],
        {0: [(0, 0), (9 << 20, 1), (20 << 20, 2)], 1: [(0, 2), (3_000_000, 1)]},
        Resident(20 << 20, policy, SIZES),
    )
    pacer.reckon_with(Floor(((20_000, 12_345), (1_000_000, 40_000), (5_000_000, 55_555)), 67_890))
    whole, waiting, now = hashlib.sha256(), [], 10**12
    for _ in range(READS):
        now += int(draw() ** 4 * 3_000_000)
        file = int(draw() ** 2 * len(SIZES))
        offset = int(draw() * SIZES[file]) // (4096 if draw() < 0.8 else 1) * (4096 if draw() < 0.8 else 1)
        nbytes = min(SIZES[file] - offset, int(draw() ** 2 * (1 << 20)))
        reader, direct = NO_THREAD + int(draw() * 6000), draw() < 0.3
        due = pacer.admit(file, offset, nbytes, reader, direct, now)
        waiting.append((file, offset, nbytes, reader, direct, now, due))
        if draw() < 0.001:
            pacer.exchange(TierSpec(500 + int(draw() * 3000), draw()))
        while len(waiting) > draw() * 64:
            file, offset, nbytes, reader, direct, arrival, due = waiting.pop(int(draw() * len(waiting)))
            kind, started = draw(), max(now, due)
            if kind < 0.05:
                pacer.abandon(file, nbytes, reader, direct, kind < 0.02)
                continue
            pacer.sending(reader, arrival, due)
            done = started + int(draw() ** 8 * 2e9)
            pacer.complete(file, offset, nbytes, reader, direct, arrival, due, started, done)
        while pacer.next_drop():
            resident = pacer.resident
            whole.update(b"%d %d %d;" % (resident.drop_file, resident.drop_first, resident.drop_end))
        whole.update(b"%d " % due)
    told = [pacer.coverage.status(file) for file in range(len(SIZES))]
    whole.update(json.dumps([pacer.status(), pacer.resident.status(), told], sort_keys=True).encode())
    whole.update(pacer.ring.since(0)[0])
    return whole.hexdigest()


if __name__ == "__main__":
    print(digest(1, "fifo"), digest(2, "pin"))
