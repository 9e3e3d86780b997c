"""`mount -t hbf`, fstab lines and automounts: mount.hbf as mount(8) calls it."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from namespace import entered

from hbf_fuse.cli import mount_helper
from hbf_fuse.cli.common import new_app
from hbf_fuse.cli.mount import mount as mount_command

SIZE = 2_000_003
HELPER = [sys.executable, "-c", "from hbf_fuse.cli.mount_helper import main; main()"]


@pytest.fixture(scope="module")
def known():
    app = new_app()
    app.command()(mount_command)
    return mount_helper.known_options(typer.main.get_command(app))


def helper(*arguments):
    line = [*HELPER, *map(str, arguments)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in said.stderr
    return said


def test_every_option_of_hbf_mount_is_known_by_its_long_name(known):
    parameters = {name.replace("_", "-") for name in inspect.signature(mount_command).parameters}
    assert set(known) == parameters - {"paths", "foreground"} | {"no-preload"}
    assert known["mbps"] and known["resident"] and not known["allow-other"] and not known["no-preload"]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("rw", []),
        ("", []),
        ("ro,nosuid,nodev,noexec,relatime,defaults", []),
        ("noauto,user,user=me,_netdev,nofail,x-systemd.automount,X-mount.mkdir=0755,comment=tier", []),
        ("mbps=500,lat=1", ["--mbps=500", "--lat=1"]),
        ("interleave=modulo,planes=8", ["--interleave=modulo", "--planes=8"]),
        ("allow_other,t_read=20,no_preload", ["--allow-other", "--t-read=20", "--no-preload"]),
        ('jitter="normal:0.1+tail:1e-4,2",seed=7', ["--jitter=normal:0.1+tail:1e-4,2", "--seed=7"]),
        ('"jitter=uniform:0.1",rw', ["--jitter=uniform:0.1"]),
        ("place=_exps=hbf,place=.*=dram", ["--place=_exps=hbf", "--place=.*=dram"]),
    ],
)
def test_options_become_arguments(known, options, arguments):
    assert mount_helper.translated(options, known) == arguments


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("colour=red", "known: allow-other"),
        ("mbps", "mbps=..."),
        ("preload=1", "takes no value"),
        ('jitter="tail:1e-4,2', "double quote"),
        ("foreground", "unknown option"),
        ("mbps=fast", "--mbps"),
        ("engine=fast", "--engine"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_1(tmp_path, noise, options, word):
    point = tmp_path / "mnt"
    point.mkdir()
    said = helper(noise(100), point, "-o", options)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1 and word in said.stderr


def test_sloppy_leaves_unknown_options_out(known, capsys):
    assert mount_helper.translated("colour=red,mbps=5", known, sloppy=True) == ["--mbps=5"]
    assert "colour" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["source"], ["a", "b", "c"], ["a", "b", "-q"]])
def test_wrong_usage_is_one_line_and_exit_code_1(arguments):
    said = helper(*arguments)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1 and "usage: mount.hbf" in said.stderr


def test_a_mount_that_fails_is_one_line_and_exit_code_32(tmp_path, noise):
    said = helper("nosuch.gguf", tmp_path, "-o", "rw")
    assert said.returncode == 32 and said.stderr.count("\n") == 1
    said = helper(noise(100), tmp_path / "nowhere", "-o", "rw")
    assert said.returncode == 32 and "mkdir -p" in said.stderr
    said = helper(noise(100), tmp_path, "-o", "mbps=0")
    assert said.returncode == 32 and "above 0" in said.stderr


def test_fake_checks_the_options_and_mounts_nothing(tmp_path, noise):
    source = noise(100)
    point = tmp_path / "mnt"
    point.mkdir()
    said = helper(source, point, "-fv", "-o", "rw,exec,mbps=500")
    assert said.returncode == 0
    assert "hbf-mount --mbps=500" in said.stderr and "read-only" in said.stderr and "noexec" in said.stderr
    assert not point.is_mount()
    assert helper(source, point, "-f", "-o", "colour=red").returncode == 1


@pytest.fixture(scope="module")
def ns():
    with entered() as namespace:
        namespace.sh(f"mkdir mnt; head -c {SIZE} /dev/urandom > m.gguf")
        namespace.sh(
            f"echo '{namespace.work}/m.gguf {namespace.work}/mnt hbf "
            """ro,noauto,user,mbps=500,lat=1,jitter="normal:0.1+tail:1e-4,2",x-systemd.automount 0 0'"""
            " > /etc/fstab",
            uid=0,
        )
        yield namespace


def spec(ns, uid):
    return ns.sh("cat mnt/.hbf/spec.json; cmp m.gguf mnt/model.gguf", uid=uid)


def test_mount_minus_t_hbf_mounts(ns):
    ns.sh("mount -t hbf m.gguf mnt -o mbps=500,lat=1", uid=0)
    assert '"bandwidth_mbps": 500.0' in spec(ns, uid=0)
    ns.sh("umount mnt", uid=0)


@pytest.mark.parametrize("uid", [0, 65534], ids=["root", "user"])
def test_a_line_in_fstab_mounts_and_unmounts(ns, uid):
    ns.sh("mount mnt", uid=uid)
    shown = spec(ns, uid=uid)
    assert '"latency_ms": 1.0' in shown and '"jitter": "normal:0.1+tail:1e-4,2"' in shown
    ns.sh(f"umount {ns.work}/mnt", uid=uid)


def test_mount_minus_a_leaves_what_is_mounted_alone(ns):
    line = ns.sh("sed s/noauto,user,// /etc/fstab; cp /etc/fstab fstab.before", uid=0)
    ns.sh(f"cat > /etc/fstab <<'END'\n{line}END", uid=0)
    try:
        ns.sh("mount -a; mount -a; test $(grep -c fuse.hbf /proc/mounts) -ge 1; umount mnt", uid=0)
        assert str(ns.work) not in "".join(
            line for line in ns.sh("cat /proc/mounts").splitlines() if "fuse.hbf" in line
        )
    finally:
        ns.sh("cat fstab.before > /etc/fstab", uid=0)


def test_mount_reports_the_helpers_exit_code(ns):
    assert ns.run("mount", "-t", "hbf", "m.gguf", "mnt", "-o", "colour=red", uid=0).returncode == 1
    said = ns.run("mount", "-t", "hbf", "m.gguf", "mnt", "-o", "mbps=0", uid=0)
    assert said.returncode == 32 and "above 0" in said.stderr


def test_the_helper_needs_neither_path_nor_home(ns):
    said = ns.run("env", "-i", "PATH=/nonexistent", "/sbin/mount.hbf", "m.gguf", "mnt", "-o", "rw", uid=0)
    assert said.returncode == 0, said.stderr
    ns.sh("cmp m.gguf mnt/model.gguf; umount mnt", uid=0)


def test_an_automount_begins_with_the_first_reader_and_does_not_hang(ns):
    """Plays systemd, which runs mount.hbf in the one process group that autofs lets through."""
    if "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no autofs")
    script = Path(__file__).with_name("automounter.py").read_text()
    said = ns.run(ns.python, "-c", script, ns.work / "mnt", ns.work / "m.gguf", uid=0)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["0", str(SIZE)]
