"""Requests in an order that a real kernel cannot be made to send."""

import errno
import os
import time

from fuzzing.kernel import message

from hbf_fuse.engine.kernel import abi
from hbf_fuse.engine.kernel.abi import Opcode
from hbf_fuse.engine.kernel.mounting import MAX_REQUEST
from hbf_fuse.engine.kernel.session import Session
from hbf_fuse.fs import Filesystem
from hbf_fuse.host import linux
from hbf_fuse.tier import TierSpec


def test_a_signal_that_overtakes_its_read_still_ends_it(noise, monkeypatch):
    """One thread has taken the read from the kernel, and another thread the interrupt. The second one is
    faster.
    """
    monkeypatch.setattr(linux, "is_dying", lambda thread: True)
    fs = Filesystem(noise(8192), TierSpec(latency_ms=10_000))
    handle = fs.open(fs.lookup(1, b"model.gguf").ino, os.O_RDONLY)
    answers = os.memfd_create("answers")
    session = Session(answers, fs, MAX_REQUEST)
    session._dispatch(memoryview(message(Opcode.INTERRUPT, 0, abi.INTERRUPT_IN.pack(8), unique=9)), 0)
    begin = time.monotonic()
    read = message(Opcode.READ, 2, abi.READ_IN.pack(handle, 0, 4096, 0, 0, 0, 0), unique=8)
    session._dispatch(memoryview(read), time.monotonic_ns())
    assert time.monotonic() - begin < 5
    assert abi.OUT_HEADER.unpack(os.pread(answers, 100, 0)) == (abi.OUT_HEADER.size, -errno.EINTR, 8)
    os.close(answers)
