"""Wrong input: odd numbers, empty names, Ctrl-C too early. Never a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from hbf_fuse.cli.app import app_of

HBF = [sys.executable, "-m", "hbf_fuse"]


def hbf(*arguments, **options):
    line = [*HBF, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)


def complained(said, codes=(1, 2)):
    assert said.returncode in codes, said
    assert "Traceback" not in said.stderr and said.stderr.strip() and not said.stdout, said


@pytest.mark.parametrize(
    "options",
    [
        "sim --context inf --compute-ms 1",
        "sim --context nan --compute-ms 1",
        "sim --context 1e300 --compute-ms 1",
        "sim --context 100 --compute-ms inf",
        "sim --context 100 --compute-ms nan",
        "sim --context 100 --resident 100 --compute-ms 0",
        "sim --context 100 --compute-ms 1 --write-mbps 1e-320",
        "sim --context 100 --compute-ms 1 --write-mbps nan",
        "sim --context 100 --compute-ms 1 --queue-depth 99999999999999999999",
        "solve --context inf --tps 1 --compute-ms 1",
        "solve --context 100 --tps 0 --compute-ms 1",
        "solve --context 100 --tps -1 --compute-ms 1",
        "solve --context 100 --tps nan --compute-ms 1",
    ],
)
def test_impossible_spill_numbers_are_refused(tiny_model, options):
    complained(hbf("kv", *options.split(), "-m", tiny_model))


@pytest.mark.parametrize(
    "options",
    [
        "--kv-kb-per-token nan --mbps 1",
        "--kv-kb-per-token -1 --mbps 1",
        "--kv-kb-per-token 1 --mbps 1 --ops-per-token inf",
        "--kv-kb-per-token 1 --mbps 1 --op-lat-ms nan",
    ],
)
def test_impossible_ceiling_numbers_are_refused(options):
    complained(hbf("kv", "ceiling", *options.split(), "--json"))


def test_a_ceiling_without_any_bytes_is_null_in_json():
    said = hbf("kv", "ceiling", "--kv-kb-per-token", 0, "--mbps", 1, "--json")
    assert json.loads(said.stdout) == [{"mbps": 1.0, "ceiling_tps": None}]


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes are made by root")
def test_a_model_is_never_made_over_a_device(tmp_path):
    node = tmp_path / "null"
    os.mknod(node, 0o20666, os.makedev(1, 3))
    complained(hbf("model", "make", "tiny", "-o", node))
    assert node.is_char_device()


@pytest.mark.parametrize("output", ["", "."])
def test_a_model_is_never_made_over_a_folder(tmp_path, output):
    complained(hbf("model", "make", "tiny", "-o", output, cwd=tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_model_is_written_to_the_target_of_a_link(tmp_path):
    (tmp_path / "link").symlink_to("model.gguf")
    assert hbf("model", "make", "tiny", "-o", tmp_path / "link").returncode == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "model.gguf").stat().st_size > 1_000_000


def test_an_empty_source_is_not_the_current_directory(tmp_path):
    (tmp_path / "mnt").mkdir()
    (tmp_path / "file").write_text("x")
    complained(hbf("mount", "", "mnt", cwd=tmp_path), codes=(2,))


def test_a_deleted_current_directory_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'cd {gone} && rmdir {gone} && exec "$@"'
    line = ["sh", "-c", script, "sh", *HBF, "report", "results"]
    # -m looks for the package in the current directory first.
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    said = subprocess.run(line, capture_output=True, text=True, timeout=30, check=False, env=env)
    complained(said, codes=(1,))
    assert "current directory is gone" in said.stderr


@pytest.mark.parametrize("seconds", [0.05, 0.15, 0.25, 0.35])
def test_an_early_interrupt_ends_a_command_without_a_traceback(seconds):
    process = subprocess.Popen([*HBF, "profile", "list"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    # Before our code runs, Python itself is loading, and may end with its own traceback and 1.
    assert b"cli/app.py" not in said and b", in begin" not in said
    assert process.returncode in (0, 130, -signal.SIGINT) or b"KeyboardInterrupt" in said


def commands(group, *names):
    """The names of all commands; those in groups with the group's name."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield (*names, name)


def help_of(*names):
    """The text of --help, in one line and without its boxes."""
    said = CliRunner().invoke(app_of(), [*names, "--help"])
    assert said.exit_code == 0, said.output
    return re.sub(r"[\s│]+", " ", said.output)


@pytest.mark.parametrize("names", sorted(commands(typer.main.get_command(app_of()))), ids=" ".join)
def test_help_keeps_text_in_brackets(names):
    assert " . " not in help_of(*names)


def test_help_says_what_a_missing_bandwidth_means():
    assert "Left out: unlimited." in help_of("mount")
    assert "Left out: as it was." in help_of("set")
    assert "Left out: what is solved for." in help_of("kv", "solve")


def test_help_of_a_sweep_shows_its_default_axes():
    said = help_of("sweep")
    for default in ("mmap", "250,500,1000,2000", "0,1,5", "256", "25%,50%,75%", "pin", "3", "kernel", "3600"):
        assert f"[default: {default}]" in said
