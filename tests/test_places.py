"""Commands in places that people start them from: no traceback there, and no probe ends a command."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from namespace import entered

from hbf_fuse.cli.app import app_of
from hbf_fuse.host import mountinfo
from hbf_fuse.models import huggingface, places

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])

COMMANDS = {
    "mount": ("SOURCE", "POINT/mnt"),
    "umount": ("POINT/mnt",),
    "status": (),
    "set": ("POINT", "--mbps", "5"),
    "top": ("POINT", "--count", "1"),
    "doctor": (),
    "bench": ("SOURCE", "-o", "results"),
    "calibrate": ("--runs", "0"),
    "sweep": ("SOURCE", "-y", "--mode", "nothing"),
    "report": ("results",),
    "run": ("--mem", "1G", "--", "true"),
    "model make": ("list",),
    "model get": ("list",),
    "model info": ("SOURCE",),
    "profile list": (),
    "profile show": ("hbf-gen1",),
    "profile measure": ("SOURCE",),
    "profile check": ("nvme-gen4", "SOURCE"),
    "predict": ("SOURCE", "--mbps", "500"),
    "validate": ("ocp-*",),
    "trace summary": ("SOURCE",),
    "trace replay": ("SOURCE",),
    "exec": ("-m", "SOURCE", "--", "true"),
    "kv info": ("SOURCE",),
    "kv ceiling": ("--kv-kb-per-token", "1", "--mbps", "500", "--lat", "1"),
    "kv sim": ("-m", "SOURCE", "--mbps", "500", "--context", "1000"),
    "kv solve": ("-m", "SOURCE", "--lat", "1", "--context", "1000"),
    "kv replay": ("POINT", "--context", "1000"),
}
"""Every command, with arguments that need little time."""

WITHOUT_SYS = ("mount", "status", "doctor", "bench", "sweep", "profile list", "model info")
"""Those that are tried with /proc, too."""

IN_CHROOT = """
root="$1"; shift
mount -t tmpfs chroot "$root"
for folder in /*; do
    case "$folder" in /proc|/sys) continue; esac
    [ -d "$folder" ] || continue
    mkdir "$root$folder"; mount --rbind "$folder" "$root$folder"
done
if [ "$1" = proc ]; then mkdir "$root/proc"; mount -t proc proc "$root/proc"; fi
shift
exec chroot "$root" "$@"
"""


def commands(group, *names):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name))


def test_every_command_has_a_line_here():
    assert set(COMMANDS) == set(commands(typer.main.get_command(app_of())))


def lines(name, source, point):
    return [
        *name.split(),
        *(a.replace("SOURCE", str(source)).replace("POINT", str(point)) for a in COMMANDS[name]),
    ]


def checked(said):
    assert "Traceback" not in said.stderr, said.stderr
    assert said.returncode in (0, 1, 2, 3), said
    return said


def run(line, **options):
    return subprocess.run(
        line, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, **options
    )


@pytest.mark.parametrize(
    ("name", "proc"),
    [*((name, "bare") for name in COMMANDS), *((name, "proc") for name in WITHOUT_SYS)],
)
def test_a_chroot_without_proc_or_sys_brings_no_traceback(tiny_model, tmp_path, name, proc):
    if os.geteuid():
        pytest.skip("only root can chroot")
    root, point = tmp_path / "root", Path("/tmp") / f"{tmp_path.name}-{os.getpid()}"
    root.mkdir()
    (point / "mnt").mkdir(parents=True)
    shell = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", IN_CHROOT, "sh", str(root), proc]
    try:
        # Its mounts end with the namespace.
        said = checked(run([*shell, "env", "-C", "/tmp", *HBF, *lines(name, tiny_model, point)]))
    finally:
        shutil.rmtree(point)
    if name in ("status", "profile list", "model info") and proc == "proc":
        assert said.returncode == 0, said
    if name == "doctor":
        assert said.returncode in (0, 3) and "CPU governor" in said.stdout, said
    assert "input or output" not in said.stderr


@ENGINES
def test_a_current_directory_whose_mount_has_ended(noise, tmp_path, engine):
    point = tmp_path / "mnt"
    point.mkdir()
    script = 'hbf="$1"; shift; cd "$1"; python="$2"; $python $hbf umount --force .; $python $hbf status'
    made = run([*HBF, "mount", "--engine", engine, str(noise(10_000)), str(point)])
    assert made.returncode == 0, made
    said = checked(run(["sh", "-c", script, "sh", "-P -m hbf_fuse", str(point), sys.executable]))
    assert said.returncode == 0, said
    assert not point.is_mount()


@ENGINES
def test_a_current_directory_on_a_mount_whose_server_was_killed(noise, tmp_path, engine):
    point = tmp_path / "mnt"
    point.mkdir()
    assert run([*HBF, "mount", "--engine", engine, str(noise(10_000)), str(point)]).returncode == 0
    pid = json.loads((point / ".hbf/spec.json").read_text())["pid"]
    script = f'cd "$1"; kill -9 {pid}; sleep 0.5; shift; "$@" status; "$@" profile list; "$@" report x'
    said = checked(run(["sh", "-c", script, "sh", str(point), *HBF]))
    assert said.returncode == 1 and said.stderr.count("\n") == 1, said
    give_up = time.monotonic() + 20
    while mountinfo.find(point) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not mountinfo.find(point)


@pytest.fixture(scope="module")
def closed():
    """A namespace with a current directory that its user may not read."""
    with entered() as namespace:
        namespace.sh("mkdir -p closed/in; chmod 0 closed")
        yield namespace


@pytest.mark.parametrize("name", COMMANDS)
def test_a_current_directory_that_may_not_be_read_and_a_home_that_is_not_there(closed, name):
    line = lines(name, closed.folder / "none.gguf", closed.work)
    shell = 'cd "$1"; shift; exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"'
    command = [closed.python, "-P", "-m", "hbf_fuse", *line]
    inside = closed.work / "closed/in"
    checked(closed.run("sh", "-ec", shell, "sh", inside, *command, uid=0, HOME="/proc/none"))


@pytest.mark.parametrize("home", ["/", "relative", ""])
def test_a_home_that_may_not_be_written_or_is_none(closed, home):
    said = checked(closed.run(closed.python, "-P", "-m", "hbf_fuse", "mount", closed.work / "mnt", HOME=home))
    assert said.returncode == 1 and said.stderr.count("\n") == 1, said


@pytest.mark.parametrize("name", ["status", "profile list", "report"])
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_standard_streams_that_are_closed_or_full(name, closed, tmp_path):
    said = checked(
        run(["sh", "-c", f'exec "$@" {closed}', "sh", *HBF, *lines(name, "none", tmp_path)], cwd=tmp_path)
    )
    assert "Exception ignored" not in said.stderr
    if closed == ">/dev/full" and name != "report":
        assert said.returncode == 1 and "standard output: No space left on device" in said.stderr


def test_a_mount_begins_with_closed_streams(noise, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    script = 'exec "$@" <&- >&- 2>&-'
    assert run(["sh", "-c", script, "sh", *HBF, "mount", str(noise(100)), str(point)]).returncode == 0
    assert run([*HBF, "umount", str(point)]).returncode == 0


def test_relative_folders_of_the_environment_are_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("cache", "./cache", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert places.cache_dir() == tmp_path / ".cache/hbf"
        assert places.config_file() == tmp_path / ".config/hbf/config.toml"
        assert Path("cache/huggingface/hub") not in list(huggingface._hubs())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert places.cache_dir() == tmp_path / "other/hbf"


def test_a_relative_cache_folder_makes_nothing_below_the_current_directory(tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": "cache", "HBF_MODEL": ""}
    assert run([*HBF, "mount", str(point)], cwd=tmp_path, env=env).returncode == 0
    assert run([*HBF, "umount", str(point)]).returncode == 0
    assert (tmp_path / ".cache/hbf/tiny.gguf").exists() and not (tmp_path / "cache").exists()


def test_what_nobody_expected_is_one_line_with_its_place():
    script = "from hbf_fuse.cli.common import guarded\nguarded(lambda: {}['none'])"
    line = [sys.executable, "-P", "-c", script]
    assert "Traceback" in run(line).stderr
    said = run(line, env={**os.environ, "HBF_TRACEBACK": ""})
    assert said.returncode == 1 and "a defect of hbf: KeyError: 'none'" in said.stderr, said
    assert said.stderr.count("\n") == 1
