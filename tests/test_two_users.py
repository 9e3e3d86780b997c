"""Two real users: what root does in another user's folder, and that honest users lose nothing by it."""

import json
import re
from pathlib import Path

import pytest
from namespace import STRANGER, USER, entered

DATA = Path(__file__).parent / "data"
EXAMPLE = Path(__file__).parent.parent / "systemd/fstab.example"


@pytest.fixture(scope="module")
def ns():
    with entered() as namespace:
        namespace.sh("mkdir theirs mine", uid=0)
        namespace.sh(f"chmod 700 mine; chown {STRANGER}:{STRANGER} theirs", uid=0)
        yield namespace


@pytest.fixture
def theirs(ns):
    """An empty folder of another user, relative to the current directory of commands."""
    yield "theirs"
    ns.sh("find theirs mine -mindepth 1 -delete", uid=0)


def anything_in_roots_own_folder(ns):
    return ns.sh("find mine -mindepth 1", uid=0)


# Root in another user's folder


@pytest.mark.parametrize("link", ["folder", "file"])
def test_root_makes_no_model_where_a_strangers_link_leads(ns, theirs, link):
    leads_to, output = ("mine", "link/x.gguf") if link == "folder" else ("mine/x.gguf", "link")
    ns.sh(f"ln -s {ns.work}/{leads_to} {theirs}/link", uid=STRANGER)
    said = ns.hbf("model", "make", "tiny", "-o", f"{theirs}/{output}", uid=0)
    assert said.returncode == 1 and "another user's link" in said.stderr
    assert not anything_in_roots_own_folder(ns)


@pytest.mark.parametrize("link", ["folder", "file"])
def test_root_writes_no_trace_where_a_strangers_link_leads(ns, theirs, link):
    leads_to, trace = ("mine", "link/t.trace") if link == "folder" else ("mine/t.trace", "link")
    ns.sh(f"ln -s {ns.work}/{leads_to} {theirs}/link", uid=STRANGER)
    ns.sh("mkdir -p rootmnt; echo model > rootmodel.gguf", uid=0)
    said = ns.hbf("mount", "--trace", f"{theirs}/{trace}", "rootmodel.gguf", "rootmnt", uid=0)
    ns.hbf("umount", "rootmnt", uid=0)
    assert said.returncode == 1 and "link" in said.stderr
    assert not anything_in_roots_own_folder(ns)


def test_root_keeps_no_results_where_a_strangers_link_leads(ns, theirs):
    ns.sh(f"ln -s {ns.work}/mine {theirs}/link", uid=STRANGER)
    said = ns.hbf("calibrate", "-o", f"{theirs}/link/envelope.json", uid=0)
    assert said.returncode == 1 and "another user's link" in said.stderr
    assert not anything_in_roots_own_folder(ns)


def test_root_steers_no_mount_that_a_strangers_link_leads_to(ns, theirs):
    ns.sh("mkdir -p rootmnt; echo model > rootmodel.gguf", uid=0)
    assert ns.hbf("mount", "--mbps", 500, "rootmodel.gguf", "rootmnt", uid=0).returncode == 0
    try:
        ns.sh(f"ln -s {ns.work}/rootmnt {theirs}/mnt", uid=STRANGER)
        for command in (["set", "--mbps", 5], ["umount", "--force"]):
            said = ns.hbf(*command, f"{theirs}/mnt", uid=0)
            assert said.returncode == 1 and "another user's link" in said.stderr, said
        assert "500 MB/s" in ns.hbf("status", "rootmnt", uid=0).stdout
    finally:
        assert ns.hbf("umount", "rootmnt", uid=0).returncode == 0


def test_root_serves_nothing_that_a_stranger_puts_in_place_of_the_source(ns, theirs):
    ns.sh("echo secret > mine/model.gguf", uid=0)
    ns.sh(f"mkdir {theirs}/served; echo theirs > {theirs}/served/model.gguf", uid=STRANGER)
    ns.sh("mkdir -p rootmnt", uid=0)
    assert ns.hbf("mount", "--allow-other", f"{theirs}/served", "rootmnt", uid=0).returncode == 0
    try:
        assert ns.sh("cat rootmnt/model.gguf", uid=STRANGER) == "theirs\n"
        ns.sh(f"mv {theirs}/served {theirs}/away; ln -s {ns.work}/mine {theirs}/served", uid=STRANGER)
        # The mounted folder is held open: another folder with its name does not matter.
        assert ns.sh("cat rootmnt/model.gguf", uid=STRANGER) == "theirs\n"
        ns.sh(f"rm {theirs}/away/model.gguf", uid=STRANGER)
        ns.sh(f"ln -s {ns.work}/mine/model.gguf {theirs}/away/model.gguf", uid=STRANGER)
        assert ns.run("cat", "rootmnt/model.gguf", uid=STRANGER).returncode
    finally:
        assert ns.hbf("umount", "rootmnt", uid=0).returncode == 0


# Root runs nothing from a user's environment


def test_the_helper_of_the_example_runs_nothing_from_the_environment(ns, theirs):
    """`mount` calls it like this for an ordinary user: as root, with the user's environment and directory."""
    wrapper = re.search(r"-I -m (hbf_fuse\.cli\.mount_helper)", EXAMPLE.read_text())
    for name in ("hbf_fuse/__init__.py", "json.py", "sitecustomize.py", "usercustomize.py"):
        code = f'open("{ns.work}/theirs/run", "w")'
        ns.sh(f"mkdir -p $(dirname theirs/{name}); echo '{code}' > theirs/{name}", uid=STRANGER)
    # The packages lie in a folder of the tests, which -I would ignore, too.
    code = f"import sys; sys.path += ['{ns.folder}', '{ns.folder}/site']; sys.argv[0] = 'mount.hbf'; "
    code += f"from {wrapper[1]} import main; main()"
    hostile = {
        "PYTHONPATH": f"{ns.work}/theirs",
        "PYTHONUSERBASE": f"{ns.work}/theirs",
        "HOME": f"{ns.work}/theirs",
    }
    said = ns.run(
        "sh",
        "-c",
        'cd theirs; exec "$@"',
        "sh",
        ns.python,
        "-I",
        "-c",
        code,
        "nothing",
        "nowhere",
        uid=0,
        **hostile,
    )
    assert "does not exist" in said.stderr and said.returncode
    assert not ns.sh("find theirs -name run")


# Honest users lose nothing


def test_root_by_sudo_follows_the_links_of_its_caller(ns, theirs):
    ns.sh("mkdir -p own/real; ln -sfn real own/link")
    said = ns.hbf("model", "make", "tiny", "-o", "own/link/x.gguf", uid=0, SUDO_UID=str(USER))
    assert said.returncode == 0, said.stderr
    assert ns.hbf("model", "info", "own/link/x.gguf", uid=0, SUDO_UID=str(USER)).returncode == 0
    # Without sudo it is another user's link.
    said = ns.hbf("model", "make", "tiny", "-o", "own/link/y.gguf", uid=0)
    assert said.returncode == 1 and "another user's link" in said.stderr


def test_root_by_sudo_writes_reports_into_a_folder_of_its_caller(ns):
    run = json.loads((DATA / "run-mmap.json").read_text())
    ns.sh(f"mkdir -p results/runs; cat > results/runs/{run['cell']['name']}.json <<'E'\n{json.dumps(run)}\nE")
    said = ns.hbf("report", "results", uid=0, SUDO_UID=str(USER))
    assert said.returncode == 0, said.stderr
    assert ns.sh("ls results/report.md")


def test_a_home_and_a_folder_for_temporary_files_may_lie_behind_links(ns):
    ns.sh("mkdir -p disk/home disk/tmp; ln -sfn disk/home home; ln -sfn disk/tmp tmp")
    # It makes the model in one of them, and measures the machine's floor in the other.
    places = {"HOME": f"{ns.work}/home", "TMPDIR": f"{ns.work}/tmp"}
    said = ns.hbf("mount", "--mbps", 500, "home/mnt", **places)
    assert said.returncode == 1 and "does not exist" in said.stderr
    ns.sh("mkdir home/mnt")
    said = ns.hbf("mount", "--mbps", 500, "home/mnt", **places)
    assert said.returncode == 0, said.stderr
    assert ns.sh("head -c 4 home/mnt/model.gguf") == "GGUF"
    assert ns.hbf("umount", "home/mnt").returncode == 0
    assert not ns.sh("ls -A tmp/")


def test_a_mountpoint_may_lie_below_a_bind_mount_and_behind_ones_own_link(ns):
    ns.sh("mkdir -p real bound; echo model > m.gguf; ln -sfn bound behind")
    ns.sh("mount --bind real bound; mkdir -p bound/mnt", uid=0)
    ns.sh(f"chown {USER}:{USER} bound/mnt", uid=0)
    try:
        for uid in (USER, 0):
            model = "m.gguf"
            said = ns.hbf("mount", model, "bound/mnt", uid=uid)
            assert said.returncode == 0, said.stderr
            assert ns.sh("cat bound/mnt/model.gguf", uid=uid) == "model\n"
            assert ns.hbf("umount", "bound/mnt", uid=uid).returncode == 0
        assert ns.hbf("mount", "m.gguf", "behind/mnt").returncode == 0
        assert ns.hbf("umount", "behind/mnt").returncode == 0
    finally:
        ns.sh("umount bound", uid=0)
