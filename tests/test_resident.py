"""The emulated DRAM: pages counted, pages dropped, and a comparison with the kernel."""

import hashlib
import subprocess
import sys
import time

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host.residency import resident_bytes
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.pacing.resident import HEADROOM_BYTES, MIN_BYTES, WINDOW_BYTES, Resident
from hbf_fuse.tier import TierSpec

MIB = 1 << 20
FILE = 1
SIZE = 64 * MIB


class Kernel:
    """Drops the pages that a Resident names, at once."""

    def __init__(self, policy, budget=MIN_BYTES, exempt=()):
        self.dropped = []
        self.resident = Resident(budget, policy, [4096, SIZE], {FILE: exempt})

    def read(self, offset, nbytes=MIB):
        self.resident.coming(FILE, offset, nbytes)
        self.settle()
        self.resident.came(FILE, offset, nbytes)
        self.settle()

    def settle(self):
        while self.resident.next_drop():
            assert self.resident.drop_file == FILE
            first, end = self.resident.drop_first, self.resident.drop_end
            self.dropped.append((first * 4096, (end - first) * 4096))


def test_fifo_drops_the_oldest_pages_and_no_more_than_needed():
    kernel = Kernel("fifo")
    for place in range(40):
        kernel.read(place * MIB)
        assert kernel.resident.resident_bytes <= MIN_BYTES
    kept = (MIN_BYTES - HEADROOM_BYTES) // MIB
    assert kernel.dropped == [(place * MIB, MIB) for place in range(40 - kept)]
    assert kernel.resident.resident_bytes == kept * MIB


def test_pin_keeps_the_first_pages_and_streams_the_rest():
    kernel = Kernel("pin")
    for place in range(40):
        kernel.read(place * MIB)
    for place in range(kernel.resident.pinned_bytes // MIB, 40):
        kernel.read(place * MIB)
    pinned = (MIN_BYTES - WINDOW_BYTES) // MIB
    assert kernel.resident.pinned_bytes == pinned * MIB
    assert min(offset for offset, _ in kernel.dropped) == pinned * MIB


def test_a_page_that_the_kernel_dropped_itself_is_counted_once():
    kernel = Kernel("fifo")
    for _ in range(30):
        kernel.read(0)
    assert kernel.resident.resident_bytes == MIB
    assert not kernel.dropped


def test_replies_are_not_remembered_forever_if_the_budget_is_never_reached():
    kernel = Kernel("fifo")
    kernel.read(0, 4096)
    for count in range(30_000):
        kernel.read(4096 * (1 + count % 100), 4096)
    assert kernel.resident.resident_bytes == 101 * 4096
    assert kernel.resident._count <= 2 * MIN_BYTES // 4096
    for place in range(1, 40):
        kernel.read(place * MIB)
    assert kernel.dropped[:3] == [(0, 4096), (4096, 4096), (8192, 4096)]


def test_more_replies_than_32_bits_can_count_are_no_trouble():
    kernel = Kernel("fifo")
    kernel.resident._number = (1 << 32) - 3
    for place in range(40):
        kernel.read(place * MIB)
    assert len(kernel.dropped) == 40 - (MIN_BYTES - HEADROOM_BYTES) // MIB


def test_pages_of_a_read_that_failed_are_not_counted():
    kernel = Kernel("fifo")
    kernel.resident.coming(FILE, 0, MIB)
    kernel.resident.abandoned(MIB)
    assert kernel.resident.resident_bytes == 0


def test_exempt_pages_are_neither_counted_nor_dropped():
    kernel = Kernel("fifo", exempt=[(0, 8 * MIB)])
    for place in range(40):
        kernel.read(place * MIB)
    assert min(offset for offset, _ in kernel.dropped) == 8 * MIB


def test_part_of_a_reply_that_came_again_is_dropped_once():
    kernel = Kernel("fifo")
    kernel.read(0, 2 * MIB)
    kernel.read(MIB, MIB)
    for place in range(2, 40):
        kernel.read(place * MIB)
    assert sorted(kernel.dropped)[:2] == [(0, MIB), (MIB, MIB)]


def test_a_budget_that_cannot_work_is_refused():
    with pytest.raises(HbfError, match="thrashes"):
        Resident(MIN_BYTES - 1, "pin", [4096, SIZE])
    with pytest.raises(HbfError, match="lru"):
        Layout(SIZE, "lru")


READER = """
import hashlib, sys
path, step, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(rounds):
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(step):
            digest.update(block)
    print(digest.hexdigest())
"""


@pytest.mark.parametrize("policy", ["fifo", "pin"])
def test_mincore_never_shows_more_than_the_budget_and_every_byte_is_right(noise, tmp_path, policy):
    source = noise(48 * MIB + 12345)
    expected = hashlib.sha256(source.read_bytes()).hexdigest()
    point = tmp_path / "mnt"
    point.mkdir()
    layout = Layout(resident_bytes=24 * MIB, policy=policy)
    with child.mounted(MountConfig(source, point, TierSpec(600), layout=layout)) as mount:
        file = mount / "model.gguf"
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(file), str(step), "2"], stdout=subprocess.PIPE, text=True
            )
            for step in (1 << 16, 1 << 18, 1 << 20, 1 << 21)
        ]
        most = 0
        while any(reader.poll() is None for reader in readers):
            most = max(most, resident_bytes(file) or 0)
            time.sleep(0.005)
        assert {line for reader in readers for line in reader.communicate()[0].split()} == {expected}
        held = client.read_hidden(mount, "stats.json")["resident"]
        assert most <= 26 * MIB, f"{most / MIB:.1f} MiB"
        assert abs(held["resident_bytes"] - (resident_bytes(file) or 0)) <= 2 * MIB
        assert held["evicted_bytes"] > 0


def test_pinned_pages_are_read_once(noise, tmp_path):
    source = noise(40 * MIB)
    point = tmp_path / "mnt"
    point.mkdir()
    layout = Layout(resident_bytes=30 * MIB, policy="pin")
    with child.mounted(MountConfig(source, point, TierSpec(2000), layout=layout)) as mount:
        with (mount / "model.gguf").open("rb", buffering=0) as file:
            for _ in range(3):
                file.seek(0)
                while file.read(MIB):
                    pass
        served = client.read_hidden(mount, "stats.json")["bytes_read"]
    streamed = 40 * MIB - (30 * MIB - WINDOW_BYTES)
    assert 40 * MIB + 2 * streamed - 16 * MIB <= served <= 40 * MIB + 2 * streamed + 8 * MIB


def test_fusepy_cannot_drop_pages_and_says_so(noise, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    config = MountConfig(noise(MIB), point, TierSpec(500), "fusepy", layout=Layout(resident_bytes=32 * MIB))
    with pytest.raises(HbfError, match="kernel engine"), child.mounted(config):
        pass
    assert not point.is_mount()
