"""Signals end a command, whatever it is doing."""

import signal
import subprocess
import sys

import pytest

_GOES_ON = """
import os, sys, time
from hbf_fuse.cli.common import guarded

class Freed:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.01)

def action():
    Freed()
    time.sleep(20)
    print("went on")

guarded(action)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_that_meets_a_destructor_is_not_lost(number, code):
    line = [sys.executable, "-P", "-c", _GOES_ON, str(int(number))]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=15, check=False)
    assert ended.returncode == code
    assert "went on" not in ended.stdout
    assert "Traceback" not in ended.stderr


def test_any_other_error_of_a_destructor_is_printed():
    action = "class Freed:\n    def __del__(self): 1 / 0\nguarded(Freed)"
    line = [sys.executable, "-P", "-c", f"from hbf_fuse.cli.common import guarded\n{action}"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=15, check=False)
    assert ended.returncode == 0
    assert "ZeroDivisionError" in ended.stderr


def test_a_signal_that_the_main_thread_holds_back_waits_for_it():
    script = (
        "import os, signal\nfrom hbf_fuse import signals\nsignals.watch()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\nos.kill(os.getpid(), signal.SIGTERM)\n"
        "print(signal.SIGTERM in signal.sigpending())"
    )
    line = [sys.executable, "-P", "-c", script]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=15, check=False)
    assert (ended.stdout, ended.returncode) == ("True\n", 0), ended
