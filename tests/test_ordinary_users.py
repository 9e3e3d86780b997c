"""Without root: through fusermount3, with /dev/fuse as udev sets it. Other users see nothing."""

import json
import subprocess
import time

import pytest
from namespace import STRANGER, entered

SIZE = 3_000_017
ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])


@pytest.fixture(scope="module")
def ns():
    with entered() as namespace:
        namespace.sh(f"mkdir mnt; head -c {SIZE} /dev/urandom > m.gguf")
        yield namespace


@pytest.fixture
def mounted(ns):
    """Mounts m.gguf on mnt, and unmounts everything there at the end."""

    def make(*options, **env):
        said = ns.hbf("mount", "--mbps", 500, *options, "m.gguf", "mnt", **env)
        assert said.returncode == 0, said.stderr
        return ns.work / "mnt"

    yield make
    while is_mounted(ns):
        ns.sh("umount -l mnt", uid=0)


def pid_of(ns):
    return int(ns.sh("""sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p' mnt/.hbf/spec.json"""))


def is_mounted(ns):
    return f" {ns.work}/mnt " in ns.sh("cat /proc/mounts")


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@ENGINES
def test_a_user_mounts_reads_steers_and_unmounts(ns, engine):
    said = ns.hbf("mount", "--engine", engine, "--mbps", 500, "m.gguf", "mnt")
    assert "readahead stays at 128 KiB" in said.stderr and "needs root" in said.stderr
    ns.sh("cmp m.gguf mnt/model.gguf")
    assert ns.hbf("set", "mnt", "--mbps", 250).returncode == 0
    said = ns.hbf("status", "mnt")
    assert said.returncode == 0 and "250 MB/s" in said.stdout
    assert ns.hbf("umount", "mnt").returncode == 0
    assert not is_mounted(ns)


@ENGINES
def test_a_user_changes_the_tier_with_the_shell_alone(ns, mounted, engine):
    mounted("--engine", engine)
    ns.sh("""echo '{"mbps": 125}' > mnt/.hbf/control; grep -q '"mbps": 125' mnt/.hbf/control""")


@ENGINES
def test_a_users_server_that_is_killed_leaves_nothing_mounted(ns, mounted, engine):
    mounted("--engine", engine)
    ns.run("kill", "-9", pid_of(ns))
    assert wait_until(lambda: not is_mounted(ns))
    mounted("--engine", engine)
    ns.sh("cmp m.gguf mnt/model.gguf")


@ENGINES
def test_nobody_else_sees_a_users_mount_not_even_root(ns, mounted, engine):
    mounted("--engine", engine)
    for uid in (STRANGER, 0):
        for name in ("", "model.gguf", ".hbf/spec.json", ".hbf/stats.json", ".hbf/trace", ".hbf/control"):
            said = ns.run("cat", f"mnt/{name}", uid=uid)
            assert said.returncode == 1 and "Permission denied" in said.stderr
        assert ns.run("sh", "-c", "echo '{}' > mnt/.hbf/control", uid=uid).returncode != 0
    said = ns.hbf("set", "mnt", "--mbps", 5, uid=STRANGER)
    assert said.returncode == 1 and "not a live hbf mount of yours: another user" in said.stderr
    # Other mounts of this machine may be listed, too.
    listed = ns.hbf("status", uid=STRANGER).stdout.splitlines()
    (line,) = (each for each in listed if f"{ns.work}/mnt" in each)
    assert "another user" in line and "hbf status" not in line


def test_nobody_else_sees_a_mount_of_root(ns):
    ns.sh("mkdir -p rootmnt; cp m.gguf r.gguf; chmod 644 r.gguf", uid=0)
    assert ns.hbf("mount", "r.gguf", "rootmnt", uid=0).returncode == 0
    try:
        assert "Permission denied" in ns.run("cat", "rootmnt/model.gguf").stderr
        assert "Permission denied" in ns.run("cat", "rootmnt/.hbf/stats.json").stderr
    finally:
        assert ns.hbf("umount", "rootmnt", uid=0).returncode == 0


@ENGINES
def test_another_users_mount_cannot_be_unmounted_and_the_error_says_so(ns, mounted, engine):
    mounted("--engine", engine)
    for force in ([], ["--force"]):
        said = ns.hbf("umount", "mnt", *force, uid=STRANGER)
        assert said.returncode == 1 and "only its owner or root can" in said.stderr
    assert is_mounted(ns)
    ns.sh("cmp m.gguf mnt/model.gguf")


def test_root_unmounts_what_a_user_mounted(ns, mounted):
    mounted()
    assert ns.hbf("umount", "mnt", uid=0).returncode == 0
    assert not is_mounted(ns)


def test_a_busy_mount_of_a_user_says_so_and_force_ends_it(ns, mounted):
    mounted()
    ns.sh("sh -c 'exec 9< mnt/model.gguf; sleep 20' > /dev/null 2>&1 & sleep 0.5")
    said = ns.hbf("umount", "mnt")
    assert said.returncode == 1 and "is in use" in said.stderr
    assert ns.hbf("umount", "mnt", "--force").returncode == 0
    assert not is_mounted(ns)


@ENGINES
@pytest.mark.parametrize("with_fusectl", [True, False], ids=["fusectl", "no fusectl"])
def test_force_ends_a_users_mount_whose_server_is_suspended(ns, mounted, engine, with_fusectl):
    """The kernel's control file of the connection also frees readers, if fusectl is mounted."""
    if with_fusectl:
        ns.sh("mount -t fusectl none /sys/fs/fuse/connections", uid=0)
    mounted("--engine", engine, "--lat", 10_000)
    server = pid_of(ns)
    reader = subprocess.Popen(ns.argv("cat", "mnt/model.gguf"), stdout=subprocess.DEVNULL)
    try:
        assert wait_until(lambda: '"reads": 0' not in ns.sh("cat mnt/.hbf/stats.json"))
        ns.run("kill", "-STOP", server)
        said = ns.hbf("umount", "mnt")
        assert said.returncode == 1 and "does not answer" in said.stderr
        said = ns.hbf("umount", "--force", "mnt")
        assert said.returncode == 0, said.stderr
        assert not is_mounted(ns)
        if not with_fusectl:
            ns.run("kill", "-KILL", server)
        assert reader.wait(10) == 1
    finally:
        reader.kill()
        reader.wait()
        ns.run("kill", "-KILL", server)
        if with_fusectl:
            ns.sh("umount /sys/fs/fuse/connections", uid=0)


@ENGINES
def test_allow_other_needs_the_administrators_permission(ns, engine):
    said = ns.hbf("mount", "--engine", engine, "--allow-other", "m.gguf", "mnt")
    assert said.returncode == 1 and "user_allow_other in /etc/fuse.conf" in said.stderr
    assert not is_mounted(ns)


@ENGINES
def test_allow_other_lets_others_read_the_model_but_not_the_control(ns, mounted, engine):
    ns.sh("echo user_allow_other > /etc/fuse.conf", uid=0)
    try:
        mounted("--engine", engine, "--allow-other")
        for uid in (STRANGER, 0):
            ns.sh(f"cmp {ns.work}/m.gguf {ns.work}/mnt/model.gguf", uid=uid)
        for name in ("spec.json", "stats.json", "trace", "control"):
            assert "Permission denied" in ns.run("cat", f"mnt/.hbf/{name}", uid=STRANGER).stderr
        assert ns.run("sh", "-c", "echo '{}' > mnt/.hbf/control", uid=STRANGER).returncode != 0
    finally:
        ns.sh(": > /etc/fuse.conf", uid=0)


def test_allow_other_does_not_open_a_source_that_others_may_not_read(ns):
    ns.sh("echo user_allow_other > /etc/fuse.conf", uid=0)
    ns.sh("mkdir -p own; cp m.gguf own/private.gguf; chmod 600 own/private.gguf")
    try:
        assert ns.hbf("mount", "--allow-other", "own/private.gguf", "mnt").returncode == 0
        assert "Permission denied" in ns.run("cat", "mnt/model.gguf", uid=STRANGER).stderr
        ns.sh("cmp m.gguf mnt/model.gguf")
    finally:
        ns.sh(": > /etc/fuse.conf", uid=0)
        assert ns.hbf("umount", "mnt").returncode == 0


SCRAPE = """
import sys, urllib.request, urllib.error
try:
    with urllib.request.urlopen("http://127.0.0.1:%s/metrics", timeout=10) as answer:
        print(answer.status, "hbf_reads_total" in answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, "hbf_reads_total" in error.read().decode(), error.reason)
"""


def scraped(ns, port, uid):
    return ns.run(ns.python, "-c", SCRAPE % port, uid=uid).stdout.strip()


def test_metrics_answer_their_owner_and_root_alone(ns, mounted):
    from test_live import _free_port

    port = _free_port()
    mounted("--metrics", port)
    assert scraped(ns, port, 65534) == "200 True"
    assert scraped(ns, port, 0) == "200 True"
    assert scraped(ns, port, STRANGER).startswith("403 False")


def test_metrics_with_an_address_answer_everybody(ns, mounted):
    from test_live import _free_port

    port = _free_port()
    mounted("--metrics", f"127.0.0.1:{port}")
    assert scraped(ns, port, STRANGER) == "200 True"


def test_a_tier_of_a_user_has_a_resident_budget_and_a_trace(ns, mounted):
    mounted("--resident", "20M", "--trace", "reads.trace")
    ns.sh("cmp m.gguf mnt/model.gguf")
    assert ns.hbf("umount", "mnt").returncode == 0
    assert int(ns.sh("stat -c %s reads.trace")) > 200


@pytest.mark.parametrize("environment", [{"HOME": "", "PATH": "/usr/bin"}, {"PATH": "/nonexistent:/usr/bin"}])
def test_an_almost_empty_environment_is_enough(ns, mounted, environment):
    mounted(**environment)
    ns.sh("cmp m.gguf mnt/model.gguf")


@ENGINES
def test_a_device_that_is_closed_to_the_user_is_reported_with_its_remedy(ns, engine):
    ns.sh("chmod 600 /dev/fuse", uid=0)
    try:
        said = ns.hbf("mount", "--engine", engine, "m.gguf", "mnt")
        looked = ns.hbf("doctor", "--json")
    finally:
        ns.sh("chmod 666 /dev/fuse", uid=0)
    assert said.returncode == 1 and "`chmod 666 /dev/fuse` as root" in said.stderr
    assert not is_mounted(ns)
    lines = {line["name"]: line for line in json.loads(looked.stdout)["lines"]}
    assert "chmod 666" in lines["/dev/fuse"]["remedy"] and "chmod 666" in lines["mount"]["remedy"]


def test_without_fusermount3_the_remedy_is_named(ns):
    said = ns.hbf("mount", "m.gguf", "mnt", PATH="/nonexistent")
    assert said.returncode == 1 and "apt install fuse3" in said.stderr
    assert not is_mounted(ns)


def test_a_user_without_a_home_directory_is_told_what_to_set(ns):
    ns.sh(f"mkdir theirs; chown {STRANGER} theirs", uid=0)
    said = ns.run(*("env", "-u", "HOME", ns.python, "-m", "hbf_fuse", "mount", "theirs"), uid=STRANGER)
    assert said.returncode == 1 and "Traceback" not in said.stderr, said.stderr
    assert "$HOME" in said.stderr
