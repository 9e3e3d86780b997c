"""`mount -t hbf`, fstab lines and automounts: mount.hbf as mount(8) calls it."""

import inspect
import json
import os
import re
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
        ("_rnetdev,X-mount.subdir=a,x-gvfs-hide,helper=a,uhelper=b,nousers,noowner,nogroup,pamconsole", []),
        ("nostrictatime,norelatime,symfollow,nosub,sub,seclabel,ro=recursive,noiversion,nolazytime", []),
        ("remount,mbps=250", ["--remount", "--mbps=250"]),
        (
            "rw,nosuid,nodev,noexec,relatime,remount,user_id=0,group_id=0,default_permissions,max_read=1048576",
            ["--remount"],
        ),
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
        ("nosymfollow", "remount,bind,nosymfollow"),
        ("max_read=4096", "unknown option"),
        *((word, "is not possible") for word in ("bind", "rbind", "move", "rshared", "private", "slave")),
        *(
            (word, "not block devices")
            for word in ("loop", "loop=/dev/loop0", "offset=1", "verity.roothash=a")
        ),
        *((f"{word}=a", "SELinux") for word in ("context", "fscontext", "defcontext", "rootcontext")),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_1(tmp_path, noise, options, word):
    point = tmp_path / "mnt"
    point.mkdir()
    said = helper(noise(100), point, "-o", options)
    assert said.returncode == 1
    assert said.stderr.count("\n") == 1 and word in said.stderr


def test_every_option_of_mount_8_is_taken_or_refused_by_name(known):
    """Those of this machine's man page: each stands by itself on a line of the section, seven columns in."""
    line = ["man", "8", "mount"]
    environment = {**os.environ, "MANWIDTH": "80"}
    said = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
    if said.returncode:
        pytest.skip("there is no manual page of mount(8) here")
    text = re.sub(".\b", "", said.stdout)
    section = re.search(r"^FILESYSTEM-INDEPENDENT MOUNT OPTIONS$(.*?)^[A-Z]", text, re.MULTILINE | re.DOTALL)[
        1
    ]
    heads = re.findall(r"^ {7}([a-zA-Z_][\w*=,. \[\]-]*)$", section, re.MULTILINE)
    words = {word for head in heads if head[-1] != "." for word in re.split(r",? and ?|, ", head)}
    # What is left are lines of two paragraphs that stand as far to the left.
    words = {word for word in words if word and " " not in word}
    assert {"nosymfollow", "_netdev", "lazytime", "noiversion", "rootcontext=context"} <= words
    assert len(words) > 40
    for word in words:
        option = word.replace("*", "a").replace("[=mode]", "=755")
        try:
            mount_helper.translated(option, known)
        except mount_helper.UsageError as error:
            assert "is not possible" in str(error), word


def test_another_namespace_is_refused_by_name(tmp_path, noise):
    said = helper(noise(100), tmp_path, "-N", "/proc/1/ns/mnt", "-o", "rw")
    assert said.returncode == 1 and "nsenter --mount=/proc/1/ns/mnt" in said.stderr
    assert said.stderr.count("\n") == 1


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


def tier_of(ns, point="mnt"):
    said = json.loads(ns.sh(f"cat {point}/.hbf/control", uid=0))
    return said["mbps"], said["lat"]


@pytest.fixture
def fstab(ns):
    """Writes a line for a mountpoint. In the end the file is as before, and nothing is mounted."""
    before, points = (
        ns.sh("cat /etc/fstab", uid=0),
        [ns.work / "mnt", *(ns.folder / f"root-{engine}" for engine in ("kernel", "fusepy"))],
    )

    def write(options, point):
        ns.sh(f"echo '{ns.work}/m.gguf {point} hbf {options} 0 0' > /etc/fstab", uid=0)

    yield write
    for point in points:
        ns.run("umount", point, uid=0)
    ns.sh(f"cat > /etc/fstab <<'END'\n{before}END", uid=0)


@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_remount_changes_a_live_mount_as_set_does(ns, fstab, engine):
    """With a line in fstab, without one (then mount(8) takes type and options from the mount table), and as
    systemd does when a .mount unit is reloaded.
    """
    point = ns.folder / f"root-{engine}"
    ns.sh(f": > /etc/fstab; mkdir {point}", uid=0)
    ns.sh(f"mount -t hbf m.gguf {point} -o mbps=500,lat=1,allow_other,engine={engine}", uid=0)
    pid = json.loads(ns.sh(f"cat {point}/.hbf/spec.json", uid=0))["pid"]
    said = ns.run("mount", "-o", "remount,mbps=250", point, uid=0)
    assert said.returncode == 0 and said.stderr.count("\n") == 1 and "250 MB/s + 1 ms, was 500" in said.stderr
    assert tier_of(ns, point) == (250, 1)
    ns.sh(f"mount {ns.work}/m.gguf {point} -t hbf -o remount,ro,lat=2", uid=0)
    assert tier_of(ns, point) == (250, 2)
    fstab("ro,noauto,user,_netdev,x-systemd.automount,mbps=100,lat=3,trace=t,preload", point)
    said = ns.run("mount", "-o", "remount", point, uid=0)
    assert said.returncode == 0 and said.stderr.splitlines()[1].endswith("for the next mount: --trace")
    assert tier_of(ns, point) == (100, 3)
    ns.sh(f"mount -o remount,noatime {point}; mount -o remount,bind,nosymfollow {point}", uid=0)
    shown = ns.sh(f"cat {point}/.hbf/spec.json; cmp m.gguf {point}/model.gguf", uid=0)
    assert json.loads(shown)["pid"] == pid


def test_remount_refuses_what_it_cannot_do(ns, fstab):
    ns.sh(": > /etc/fstab; cp m.gguf other.gguf; mount -t hbf m.gguf mnt -o mbps=500,lat=1", uid=0)
    for options, word in (
        ("mbps=0", "above 0"),
        ("mbps=fast", "--mbps"),
        ("colour=red", "unknown option -o colour"),
        ("nosymfollow", "is not possible"),
    ):
        said = ns.run("mount", "-o", f"remount,{options}", "mnt", uid=0)
        assert said.returncode in (1, 32) and word in said.stderr and said.stderr.count("\n") == 1, said
    said = ns.run("mount", "-t", "hbf", "other.gguf", "mnt", "-o", "remount,mbps=250", uid=0)
    assert said.returncode == 32 and "serves" in said.stderr
    assert tier_of(ns) == (500, 1)
    ns.sh("rm m.gguf; cp other.gguf m.gguf; mount -o remount,profile=nvme-gen4 mnt", uid=0)
    assert tier_of(ns)[0] == 7450
    said = ns.run("mount", "-t", "hbf", "m.gguf", "work", "-o", "remount,mbps=250", uid=0)
    assert said.returncode == 32 and "Traceback" not in said.stderr


def test_the_helper_needs_neither_path_nor_home(ns):
    said = ns.run("env", "-i", "PATH=/nonexistent", "/sbin/mount.hbf", "m.gguf", "mnt", "-o", "rw", uid=0)
    assert said.returncode == 0, said.stderr
    ns.sh("cmp m.gguf mnt/model.gguf; umount mnt", uid=0)


def test_an_automount_begins_with_the_first_reader_and_does_not_hang(ns):
    """Acts as systemd does: runs mount.hbf in the one process group that autofs lets through."""
    if "autofs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no autofs")
    script = Path(__file__).with_name("automounter.py").read_text()
    said = ns.run(ns.python, "-c", script, ns.work / "mnt", ns.work / "m.gguf", uid=0)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["0", str(SIZE)]
