"""Mounts of others that do not answer: a command says so in a line, and takes signals meanwhile."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
from hung import FILE, hung

from hbf_fuse.host import answers

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]


@pytest.fixture(scope="module", params=["taking", "names"])
def stuck(request, tmp_path_factory):
    """A stuck mount: requests are taken and not answered, or only names are answered."""
    with hung(tmp_path_factory.mktemp("stuck") / "mnt", request.param) as point:
        yield point


def environment(**changed):
    return {**os.environ, **{name: str(value) for name, value in changed.items()}}


def begun(*command, env=None, cwd=None):
    return subprocess.Popen(
        [*HBF, *map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
    )


@pytest.fixture
def asked(stuck, tmp_path):
    """Commands that meet the stuck mount, by where they meet it."""
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "file").write_bytes(bytes(4096))
    return {
        "source": ("mount", stuck / FILE, own),
        "folder": ("mount", stuck, own),
        "parent": ("mount", tmp_path / "file", stuck / "below/mnt"),
        "trace": ("mount", "--trace", stuck / "below/trace", tmp_path / "file", own),
        "umount": ("umount", stuck / "below"),
        "status": ("status", stuck / "below"),
        "doctor": ("doctor", stuck / FILE),
        "report": ("report", stuck / "below"),
        "info": ("model", "info", stuck / FILE),
        "make": ("model", "make", "tiny", "-o", stuck / "below/x.gguf"),
        "summary": ("trace", "summary", stuck / FILE),
        "grid": ("sweep", stuck / "grid.toml"),
        "results": ("sweep", "-y", "-o", stuck / "below"),
        "envelope": ("calibrate", "-o", stuck / "below/envelope.json"),
        "run": ("run", "--io-max", 5, "--", "cat", stuck / FILE),
    }


PLACES = [
    *("source", "folder", "parent", "trace", "umount", "status", "doctor", "report", "info", "make"),
    *("summary", "grid", "results", "envelope", "run"),
]


def test_every_command_gives_a_stuck_mount_up_with_a_line(asked, stuck):
    assert list(asked) == PLACES
    with ExitStack() as stack:
        running = {place: stack.enter_context(begun(*command)) for place, command in asked.items()}
        said = {place: (process.communicate(timeout=90)[1], process) for place, process in running.items()}
    for place, (told, process) in said.items():
        assert process.returncode == 1, (place, told)
        assert told.count("\n") == 1 and "does not answer" in told and str(stuck) in told, (place, told)


@pytest.mark.parametrize(
    "variable", ["XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HOME", "HBF_MODEL", "OLLAMA_MODELS"]
)
def test_a_folder_or_model_of_the_environment_that_is_stuck_is_given_up(stuck, tmp_path, variable):
    own = tmp_path / "own"
    own.mkdir()
    plain = {name: value for name, value in environment().items() if not name.startswith(("XDG_", "HBF_"))}
    env = {**plain, variable: str(stuck / ("below" if variable != "HBF_MODEL" else FILE))}
    source = ("ollama:x",) if variable == "OLLAMA_MODELS" else ()
    with begun("mount", *source, own, env=env) as process:
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "does not answer" in told and told.count("\n") == 1, told


@pytest.mark.parametrize("place", ["source", "parent", "results"])
def test_an_interrupt_ends_a_command_that_waits_for_a_stuck_mount(asked, monkeypatch, place):
    with begun(*asked[place]) as process:
        time.sleep(3)  # loads, and then asks for 5 s
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=30)[1]
    assert process.returncode in (130, -signal.SIGINT, 1), told
    assert "Traceback" not in told


LATER = """
import os, sys
from hbf_fuse.cli import common
common.guarded(lambda: (print("ready", flush=True), os.stat(sys.argv[1])))
"""


def test_an_interrupt_ends_a_command_that_was_caught_in_a_system_call(tmp_path):
    with hung(tmp_path / "mnt") as point:
        line = [sys.executable, "-P", "-c", LATER, str(point / "file")]
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            told = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and "did not answer" in told


def test_an_answer_is_bytes_or_the_error_itself(tmp_path):
    assert answers.answer(tmp_path, lambda: b"x" * 3_000_000) == b"x" * 3_000_000
    with pytest.raises(FileNotFoundError) as caught:
        answers.answer(tmp_path, (tmp_path / "none").read_bytes)
    assert caught.value.filename == str(tmp_path / "none")
    answers.require(tmp_path / "none/below")


def test_who_waits_for_a_stuck_mount_holds_no_pipe_of_the_command(tmp_path):
    with hung(tmp_path / "mnt", "taking") as point:
        line = f"{' '.join(HBF)} report {point} 2>&1 | cat"
        said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=True)
    assert "does not answer" in said.stdout
