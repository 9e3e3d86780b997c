"""Every test of this folder is a fault on a real mount, tried HBF_FAULT_TIMES times: tools/reliability."""

import os

import pytest
from served import Served, start, start_reader, wait_until_it_answers

TIMES = int(os.environ.get("HBF_FAULT_TIMES", "1"))


@pytest.fixture(autouse=True, params=range(TIMES), ids=lambda count: f"time{count + 1}")
def time_tried(request):
    """Which time this is."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("no access to /dev/fuse")
    return request.param


@pytest.fixture
def serve(tmp_path):
    """serve(source, "--mbps", 100, engine="fusepy") -> Served; at the end it must go without a trace."""
    begun: list[Served] = []

    def make(source, *options, engine="kernel", at="mnt", prefix=(), env=None):
        point = tmp_path / at
        point.mkdir(exist_ok=True)
        log = tmp_path / f"log{len(begun)}"
        served = start(source, point, log, "--engine", engine, *options, prefix=prefix, env=env)
        begun.append(served)
        wait_until_it_answers(served)
        return served

    yield make
    problems = [problem for served in reversed(begun) for problem in served.close()]
    assert not problems, "\n".join(problems)


@pytest.fixture
def reading():
    """reading(way, file, source, passes=0) -> a process that compares what it reads; see steady_reader.py."""
    readers = []

    def begin(way, file, source, passes=0, prefix=()):
        readers.append(start_reader(way, file, source, passes, prefix))
        return readers[-1]

    yield begin
    for reader in readers:
        reader.kill()
        reader.wait(20)
        reader.stdout.close()
