"""docs/containers.md is tried, as far as a machine can without docker, WSL2 and Ubuntu's AppArmor."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from namespace import USER, Namespace, entered
from test_doctor import GOOD, WSL2, line_of, now

import hbf_fuse
from hbf_fuse.doctor import FAIL, WARN
from hbf_fuse.doctor.surroundings import SECURE_PATH, Surroundings
from hbf_fuse.errors import HbfError

ROOT = Path(hbf_fuse.__file__).parent.parent
PAGE = ROOT / "docs/containers.md"
NAMELESS = 12345
"""A uid that /etc/passwd does not have."""

ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])
needs_docs = pytest.mark.skipif(not PAGE.exists(), reason="the package is installed without its docs")


@pytest.fixture(scope="module")
def ns():
    with entered() as namespace:
        namespace.sh("chmod 777 .; head -c 100000 /dev/urandom > model; mkdir own")
        namespace.sh("mkdir mnt at", uid=NAMELESS)
        yield namespace


def rooted(ns: Namespace, script: str) -> "subprocess.CompletedProcess[str]":
    """The result of a script in a user and mount namespace of a user's own. `$hbf` runs hbf."""
    return ns.run("unshare", "-Urm", "sh", "-ec", script, uid=NAMELESS, hbf=f"{ns.python} -m hbf_fuse")


def may_make_user_namespaces(ns: Namespace) -> None:
    if ns.run("unshare", "-Urm", "true", uid=NAMELESS).returncode:
        pytest.skip("this kernel lets users make no user namespaces")


# A uid without a name


@ENGINES
def test_a_uid_without_a_name_mounts_in_a_user_namespace_of_its_own(ns, engine):
    may_make_user_namespaces(ns)
    said = rooted(
        ns,
        "mount -t tmpfs none at; cp model at; cd at; mkdir mnt\n"
        f"$hbf mount --engine {engine} model mnt; cmp model mnt/model.gguf; id -u\n"
        "$hbf umount mnt; test ! -e mnt/model.gguf",
    )
    assert said.returncode == 0 and said.stdout == "0\n", said


def test_fusermount3_refuses_a_uid_without_a_name_and_the_remedy_is_named(ns):
    said = ns.hbf("mount", "model", "mnt", uid=NAMELESS)
    assert said.returncode == 1
    assert "could not determine username" in said.stderr and "`unshare -Urm`" in said.stderr
    assert f"no line for uid {NAMELESS}" in said.stderr


def test_the_doctor_sees_a_uid_without_a_name(ns):
    said = ns.hbf("doctor", uid=NAMELESS)
    assert said.returncode == 3
    assert re.search(rf"fail +user +uid {NAMELESS} has no line", said.stdout)
    assert not re.search(r"(fail|warn) +user ", ns.hbf("doctor", uid=USER).stdout)


def test_an_empty_passwd_is_the_same(ns):
    may_make_user_namespaces(ns)
    ns.sh("touch empty")
    bound = "mount --bind empty /etc/passwd"
    said = rooted(ns, f"{bound}; $hbf mount model mnt; cmp model mnt/model.gguf; $hbf umount mnt")
    assert said.returncode == 0, said


@ENGINES
def test_a_read_only_home_is_no_obstacle(ns, engine):
    may_make_user_namespaces(ns)
    said = rooted(
        ns,
        "mount -t tmpfs none /mnt; mkdir /mnt/home /mnt/at; mount -t tmpfs -o ro none /mnt/home\n"
        f"export HOME=/mnt/home; $hbf mount --engine {engine} model /mnt/at\n"
        "cmp model /mnt/at/model.gguf; $hbf umount /mnt/at",
    )
    assert said.returncode == 0, said


# Privileges


def test_fusermount3_has_no_effect_with_no_new_privileges_and_a_user_namespace_helps(ns):
    plain = ("setpriv", "--no-new-privs")
    said = ns.run(*plain, ns.python, "-m", "hbf_fuse", "mount", "model", "own")
    assert said.returncode == 1 and "setuid has no effect here" in said.stderr, said
    said = ns.run(*plain, ns.python, "-m", "hbf_fuse", "doctor")
    assert re.search(r"fail +privileges +no_new_privs is set", said.stdout), said
    may_make_user_namespaces(ns)
    hbf = f"{ns.python} -m hbf_fuse"
    script = f"{hbf} mount model own; cmp model own/model.gguf; {hbf} umount own"
    assert ns.run(*plain, "unshare", "-Urm", "sh", "-ec", script).returncode == 0


@pytest.mark.parametrize(("propagation", "seen"), [("rshared", True), ("rslave", False), ("rprivate", False)])
@ENGINES
def test_readers_outside_see_a_mount_below_a_shared_folder_only(ns, engine, propagation, seen):
    script = f"""
mkdir srv; mount -t tmpfs none srv; mount --make-rshared srv; mkdir srv/mnt
trap 'umount -l srv; rmdir srv' EXIT
unshare --mount --propagation unchanged sh -ec '
    mount --make-{propagation} srv
    {ns.python} -m hbf_fuse mount --engine {engine} model srv/mnt
    cmp model srv/mnt/model.gguf
    nsenter --mount=/proc/$PPID/ns/mnt cmp $PWD/model $PWD/srv/mnt/model.gguf && echo seen
    {ns.python} -m hbf_fuse umount srv/mnt'
"""
    said = ns.run("sh", "-ec", script, uid=0)
    assert said.returncode == 0, said
    assert ("seen" in said.stdout) is seen


# sudo


def sudo(*words: object, **env: str) -> "subprocess.CompletedProcess[str]":
    """sudo as root, with a PATH that begins with this environment's commands."""
    here = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    line = ["sudo", "-n", *map(str, words)]
    return subprocess.run(
        line,
        env={**os.environ, "PATH": here, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def command() -> Path:
    """hbf-mount, where sudo does not look for it."""
    found = Path(sys.executable).with_name("hbf-mount")
    if not found.exists() or str(found.parent) in SECURE_PATH:
        pytest.skip("hbf-mount is not installed in a virtual environment")
    if os.geteuid() or not shutil.which("sudo") or sudo("true").returncode:
        pytest.skip("no sudo here that works without a password")
    if "secure_path" not in sudo("-l").stdout:
        pytest.skip("this sudo has no secure_path")
    return found


def test_sudo_does_not_find_the_command_by_its_name(command, tmp_path):
    said = sudo("hbf-mount", "--help")
    assert said.returncode == 1 and "command not found" in said.stderr
    assert sudo(command, "--help").returncode == 0


@pytest.mark.parametrize("way", ["dropped", "named", "preserved"])
def test_sudo_drops_the_model_of_the_environment_unless_told(command, tiny_model, tmp_path, way):
    point = tmp_path / "mnt"
    point.mkdir()
    named = {"named": [f"HBF_MODEL={tiny_model}"], "preserved": ["--preserve-env=HBF_MODEL"]}.get(way, [])
    own = {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    if way == "dropped":
        assert "HBF_MODEL" not in sudo("env", HBF_MODEL=str(tiny_model)).stdout
        return
    said = sudo(*named, command, point, HBF_MODEL=str(tiny_model), **own)
    try:
        assert said.returncode == 0 and f"{tiny_model} is served" in said.stderr, said
    finally:
        assert sudo(command.with_name("hbf-umount"), point).returncode == 0


# The doctor, judged from given facts


def around(**changes):
    return {"around": Surroundings(**changes), "root": False, "user_allow_other": True}


def test_a_machine_without_these_troubles_has_no_line_for_them():
    for name in ("user", "privileges", "namespaces", "AppArmor", "propagation", "sudo"):
        assert line_of(name) is None and line_of(name, **around()) is None


@pytest.mark.parametrize(
    ("name", "changes", "state", "remedy"),
    [
        ("user", around(nameless_uid=12345), FAIL, "`unshare -Urm`"),
        ("privileges", {**around(may_mount=False), "root": True}, FAIL, "--cap-add SYS_ADMIN"),
        ("privileges", around(no_new_privileges=True), FAIL, "allowPrivilegeEscalation: true"),
        (
            "namespaces",
            {
                **around(user_namespaces="kernel.apparmor_restrict_unprivileged_userns"),
                "mount": HbfError("refused"),
            },
            WARN,
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("AppArmor", around(confined=True), WARN, "/etc/apparmor.d/local/fusermount3"),
        ("propagation", {**around(shares=False), "container": True}, WARN, "rshared"),
        ("sudo", around(unknown_to_sudo=Path("/home/me/.venv/bin/hbf-mount")), WARN, "sudo /home/me/.venv"),
        (
            "sudo",
            around(unknown_to_sudo=Path("/opt/v/bin/hbf-mount"), model="model.gguf"),
            WARN,
            'sudo HBF_MODEL="$HBF_MODEL" /opt/v/bin/hbf-mount',
        ),
        ("memory", {"proc_version": WSL2, **now(memory_available_bytes=1 << 29)}, WARN, ".wslconfig"),
    ],
)
def test_what_is_missing_has_one_line_with_its_remedy(name, changes, state, remedy):
    line = line_of(name, **changes)
    assert line.state == state and remedy in line.remedy
    assert "\n" not in line.message + line.remedy


def test_root_is_not_told_what_concerns_fusermount3():
    concerns = Surroundings(nameless_uid=0, no_new_privileges=True, confined=True, unknown_to_sudo=Path("/x"))
    facts = dataclasses.replace(GOOD, around=concerns)
    for name in ("user", "privileges", "AppArmor", "sudo"):
        assert line_of(name, around=facts.around) is None


# The page itself


@needs_docs
def test_the_pod_is_sound_yaml_and_its_volumes_fit():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra `docs`")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    pod = yaml.safe_load(text)
    assert (pod["kind"], pod["apiVersion"]) == ("Pod", "v1")
    (tier,), (reader,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    for container in (tier, reader):
        assert {mounted["name"] for mounted in container["volumeMounts"]} <= volumes
    ways = {each["name"]: each.get("mountPropagation") for each in tier["volumeMounts"]}
    assert ways["tier"] == "Bidirectional" and tier["securityContext"]["privileged"]
    assert reader["volumeMounts"][0]["mountPropagation"] == "HostToContainer"
    # A sidecar: it starts first, and stays.
    assert tier["restartPolicy"] == "Always" and "-f" in tier["args"][0].split()


@needs_docs
def test_command_lines_of_the_page_have_options_that_exist():
    text = PAGE.read_text()
    for name in ("mount", "umount"):
        line = [sys.executable, "-P", "-m", "hbf_fuse", name, "--help"]
        known = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        used = set(re.findall(rf"hbf-{name}\)?\"?((?: -\S+)+)", text))
        assert all(option in known for options in used for option in options.split())
