"""Folders, names, mounts and run files that others made: nothing of theirs is lost, and none misleads hbf."""

import copy
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from fuzzing import anygguf

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.host import linux, mountinfo
from hbf_fuse.mount import client
from hbf_fuse.report import html
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.run import Finished
from hbf_fuse.runs.schema import read_run, run_of
from hbf_fuse.sweep import loop

HBF = [sys.executable, "-m", "hbf_fuse"]
RUNS = Path(__file__).parent / "data"
ESCAPE = "\x1b]0;pwned\x07\x1b[31m"


def hbf(*arguments, **options):
    line = [*HBF, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, **options)


def complained(said, *words, codes=(1,)):
    assert said.returncode in codes, said
    assert "Traceback" not in said.stderr and all(word in said.stderr for word in words), said


def real_run(mode):
    return json.loads((RUNS / f"run-{mode}.json").read_text())


def stored(folder, document):
    path = folder / "runs" / f"{document['cell']['name']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


# Results folders


def test_a_sweep_removes_nothing_that_it_did_not_make(tiny_model, llama_bench, tmp_path):
    (tmp_path / "tmp/sub").mkdir(parents=True)
    (tmp_path / "tmp/sub/data").write_text("precious")
    (tmp_path / "tmp/trace").write_text("mine")
    grid = ["--mbps", "max", "--lat", "0", "--repeats", "1", "-p", "8", "-n", "1"]
    assert hbf("sweep", *grid, "-m", tiny_model, "-o", tmp_path).returncode == 0
    assert (tmp_path / "tmp/sub/data").read_text() == "precious"
    assert (tmp_path / "tmp/trace").read_text() == "mine"


def test_a_folder_with_a_foreign_report_is_not_a_results_folder(tiny_model, llama_bench, tmp_path):
    (tmp_path / "report.md").write_text("mine")
    complained(hbf("sweep", "-m", tiny_model, "-o", tmp_path), "report.md", "another folder")
    assert (tmp_path / "report.md").read_text() == "mine"


@pytest.mark.parametrize("command", ["sweep", "bench"])
def test_an_empty_results_folder_is_not_the_current_directory(tiny_model, tmp_path, command):
    complained(hbf(command, "-m", tiny_model, "-o", "", cwd=tmp_path), "variable", codes=(2,))
    assert not list(tmp_path.iterdir())


def test_runs_that_another_process_finished_are_noticed(tmp_path):
    known = Results(tmp_path)
    assert not known.all()
    stored(tmp_path, real_run("mmap"))
    with loop.locked(tmp_path) as results:
        assert results.all()
        with pytest.raises(HbfError, match="another process"), loop.locked(tmp_path):
            pass


def test_a_file_is_never_written_through_a_link_that_was_there_first(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda nbytes: "guessed")
    victim = tmp_path / "victim"
    victim.write_text("secret")
    (tmp_path / ".report.md.guessed").symlink_to(victim)
    with pytest.raises(HbfError, match="cannot write"):
        documents.write_whole(tmp_path / "report.md", "text")
    assert victim.read_text() == "secret"


def test_a_run_writes_no_plot_elsewhere(tmp_path):
    document = real_run("stream")
    document["cell"]["layout"]["policy"] = "/../../../victim/owned"
    stored(tmp_path / "results", document)
    complained(hbf("report", tmp_path / "results"), "unknown policy")
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def without_engine(run):
    del run["cell"]["engine"]


def with_half_a_budget(run):
    run["cell"]["layout"] = {"resident_bytes": 5}


def with_stats_that_are_a_list(run):
    run["tier_stats"] = [1]


def with_a_ragged_heat_map(run):
    run["metrics"]["attribution"] = {
        "heat": {"layers": ["a", "b"], "seconds": [0, 1], "bytes": [[1, 2], [3]]},
        "read_sizes": {},
        "queue_depths": {},
    }


@pytest.mark.parametrize(
    "spoil", [without_engine, with_half_a_budget, with_stats_that_are_a_list, with_a_ragged_heat_map]
)
def test_a_run_that_cannot_be_shown_in_a_table_is_refused(tmp_path, spoil):
    document = real_run("mmap")
    spoil(document)
    with pytest.raises(HbfError, match="is not a run"):
        read_run(stored(tmp_path, document))


def test_a_run_of_a_newer_schema_is_refused_with_what_to_do(tmp_path):
    path = stored(tmp_path, {**real_run("mmap"), "schema": 3})
    with pytest.raises(HbfError, match=r"newer than 2.*update hbf-fuse"):
        read_run(path)


def of_the_first_schema(run):
    run["schema"] = 1
    for part, names in {
        "cell": ("tier", "tier_sha256", "layout"),
        "metrics": ("prefill_seconds", "decode_seconds"),
        "environment": ("virtual",),
    }.items():
        for name in names:
            del run[part][name]
    run["cell"]["model"] = {"path": "/home/me/models/tiny.gguf", "size": run["cell"]["model"]["size"]}
    for name in ("before", "after"):
        run["environment"][name] = {"time": run["environment"][name]["time"], "load_1min": 1.0}
    return run


def test_a_run_of_the_first_schema_is_read(tmp_path):
    known, first = read_run(stored(tmp_path, real_run("mmap"))), of_the_first_schema(real_run("mmap"))
    run = read_run(stored(tmp_path, first))
    assert isinstance(run, Finished) and isinstance(known, Finished)
    assert run.metrics == known.metrics and run.cell.tier == known.cell.tier
    assert run.cell.model.name == "tiny.gguf" and "/home" not in json.dumps(run.to_dict())
    first["llama_bench"]["records"] = [1]
    with pytest.raises(HbfError, match="schema 1"):
        read_run(stored(tmp_path, first))


@pytest.mark.parametrize("mode", ["mmap", "stream"])
def test_unknown_fields_survive_reading_and_storing(mode):
    document = real_run(mode)
    document["cell"]["tier"]["interleave"] = "modulo"
    document["metrics"]["new"] = document["llama_bench"]["new"] = document["new"] = {"figure": [1, 2.0]}
    document["metrics"]["stage_seconds"] = 5
    assert json.dumps(run_of(document).to_dict(), sort_keys=True) == json.dumps(document, sort_keys=True)


def test_a_run_that_failed_may_lack_everything(tmp_path):
    failed = copy.deepcopy(real_run("mmap"))
    for part in ("metrics", "command", "llama_bench"):
        del failed[part]
    failed["error"] = "no"
    stored(tmp_path, failed)
    text, _ = html.render(Results(tmp_path).all(), None)
    assert "No cell was finished" in text


# Names


def test_a_tensors_name_is_shown_as_it_is(tmp_path):
    model = copy.deepcopy(anygguf.MODEL)
    for place, name in enumerate(("blk.0.[/x].weight", ":smile:")):
        model["tensors"][place][0] = name
    file = tmp_path / "model.gguf"
    file.write_bytes(anygguf.packed(model))
    said = hbf("model", "info", file, "--tensors")
    assert said.returncode == 0, said.stderr
    assert "blk.0.[/x].weight" in said.stdout and ":smile:" in said.stdout


def test_a_mountpoints_name_sends_no_control_characters_to_a_terminal(noise, tmp_path):
    point = tmp_path / f"[-x]{ESCAPE}"
    point.mkdir()
    said = hbf("mount", noise(100_000), point)
    try:
        shown = [said, hbf("status"), hbf("top", point, "--count", 1, "--interval", 0.1)]
    finally:
        assert hbf("umount", point).returncode == 0
    assert all(each.returncode == 0 for each in shown), shown
    assert all("\x1b" not in each.stdout + each.stderr for each in shown)
    assert "[-x]" in shown[2].stdout


# Mounts


@pytest.mark.parametrize(
    "command",
    [
        "status POINT",
        "top POINT --count 1",
        "set POINT --mbps 1",
        "kv replay POINT --context 9 --compute-ms 1",
    ],
)
def test_a_folder_that_looks_like_a_mount_is_not_taken_for_one(tmp_path, command):
    (tmp_path / ".hbf").mkdir()
    for name in ("spec.json", "stats.json"):
        (tmp_path / ".hbf" / name).write_text("{}")
    complained(
        hbf(*(tmp_path if word == "POINT" else word for word in command.split())), "not a live hbf mount"
    )


def test_only_a_mounts_own_server_is_taken_for_it(mount, noise, monkeypatch):
    point = mount(noise(100_000))
    entry, spec = mountinfo.find(point), client.read_hidden(point, "spec.json")
    assert client._server_of(entry).pid == spec["pid"]
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            began = linux.start_time(bystander.pid)
            for told in (
                {**spec, "pid_namespace": 1},
                {**spec, "pid": bystander.pid},
                {**spec, "pid": -1},
                {**spec, "pid": 1 << 80},
                {**spec, "pid": "1"},
                {},
            ):
                monkeypatch.setattr(client, "read_hidden", lambda *_, told=told: told)
                assert client._server_of(entry) is None
            # A process of another user than the one that the kernel records for the mount.
            told = {**spec, "pid": bystander.pid, "start_time": began}
            monkeypatch.setattr(client, "read_hidden", lambda *_: told)
            theirs = mountinfo.Mount(**{**vars(entry), "options": ("rw", "user_id=4242")})
            assert client._server_of(theirs) is None
            assert psutil.pid_exists(bystander.pid)
        finally:
            bystander.kill()


# Checks before anything is measured


@pytest.mark.parametrize(
    ("command", "words", "code"),
    [
        ("top . --interval inf", "--interval", 2),
        ("mount --policy lru FILE mnt", "unknown policy", 1),
        ("mount --metrics= FILE mnt", "--metrics", 1),
        ("mount --trace fifo FILE mnt", "not a trace", 1),
        ("bench --mode mmap --policy lru -m FILE", "unknown policy", 1),
        ("calibrate -o FILE/envelope.json", "FILE", 1),
        ("calibrate --markdown missing/page.md", "missing", 1),
        ("kv sim --context 1.5 --compute-ms 1 -m FILE", "whole numbers", 2),
    ],
)
def test_what_cannot_work_is_refused_at_once(tiny_model, tmp_path, command, words, code):
    (tmp_path / "mnt").mkdir()
    os.mkfifo(tmp_path / "fifo")
    begin = time.monotonic()
    line = [word.replace("FILE", str(tiny_model)) for word in command.split()]
    said = hbf(*line, cwd=tmp_path, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")})
    complained(said, words.replace("FILE", tiny_model.name), codes=(code,))
    assert time.monotonic() - begin < 15
    assert not mountinfo.find(tmp_path / "mnt")


def test_a_long_sweep_without_a_terminal_is_not_begun(tiny_model, llama_bench, tmp_path):
    line = [*HBF, "sweep", "-m", tiny_model, "-o", tmp_path / "out", "--mbps", "250", "--lat", "0"]
    script = 'exec "$@" <&-'
    said = subprocess.run(
        ["sh", "-c", script, "sh", *map(str, line), "--repeats", "1100"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    complained(said, "--yes")


def test_a_terminal_that_is_closed_leaves_no_half_model(tmp_path):
    line = [
        "env",
        "--default-signal=HUP",
        *HBF,
        "model",
        "make",
        "qwen2.5-3b-q4_k_m",
        "-o",
        str(tmp_path / "model.gguf"),
    ]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 30
        while not list(tmp_path.iterdir()) and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 128 + signal.SIGHUP
    assert not list(tmp_path.iterdir())
