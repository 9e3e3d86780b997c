"""Judges what a container, sudo or AppArmor takes away: see docs/containers.md."""

from hbf_fuse.doctor.facts import Facts
from hbf_fuse.doctor.line import FAIL, WARN, Line
from hbf_fuse.doctor.serving import CONTAINER_OPTIONS
from hbf_fuse.engine.kernel.mounting import CONFINEMENT
from hbf_fuse.errors import HbfError

IN_A_NAMESPACE = "mount and read in a shell of `unshare -Urm`"


def user(facts: Facts) -> Line | None:
    """Containers run under any uid; fusermount3 wants a name for it."""
    uid = facts.around.nameless_uid
    if facts.root or uid is None:
        return None
    return Line("user", FAIL, f"uid {uid} has no line in /etc/passwd: fusermount3 refuses it", IN_A_NAMESPACE)


def privileges(facts: Facts) -> Line | None:
    """Root of a container may be root by name only."""
    if facts.root and not facts.around.may_mount:
        return Line("privileges", FAIL, "root without CAP_SYS_ADMIN cannot mount", CONTAINER_OPTIONS)
    if not facts.root and facts.around.no_new_privileges:
        return Line(
            "privileges",
            FAIL,
            "no_new_privs is set: fusermount3 has no effect",
            f"leave out no-new-privileges (Kubernetes: allowPrivilegeEscalation: true), or {IN_A_NAMESPACE}",
        )
    return None


def user_namespaces(facts: Facts) -> Line | None:
    """The way around fusermount3, if it does not mount."""
    setting = facts.around.user_namespaces
    if facts.root or not setting or not isinstance(facts.mount, HbfError):
        return None
    value = {"user.max_user_namespaces": 1000, "kernel.unprivileged_userns_clone": 1}.get(setting, 0)
    return Line("namespaces", WARN, "`unshare -Urm` cannot mount here", f"sudo sysctl {setting}={value}")


def apparmor(facts: Facts) -> Line | None:
    """Ubuntu 25.04 and newer confine fusermount3, but not mount(2) of root."""
    if facts.root or not facts.around.confined:
        return None
    return Line(
        "AppArmor",
        WARN,
        "fusermount3 may mount below ~, /mnt, /media and /tmp only",
        f"for other places: rules in {CONFINEMENT.parent}/local/{CONFINEMENT.name}",
    )


def propagation(facts: Facts) -> Line | None:
    """Whether a mount that is made in a container can be seen outside."""
    if not facts.container or facts.around.shares:
        return None
    return Line(
        "propagation",
        WARN,
        "mounts that are made here stay in this container",
        "-v DIR:DIR:rshared (Kubernetes: mountPropagation: Bidirectional), and mount below DIR",
    )


def sudo(facts: Facts) -> Line | None:
    """Its secure_path leaves out virtual environments, its env_reset drops $HBF_MODEL."""
    command = facts.around.unknown_to_sudo
    if facts.root or command is None:
        return None
    kept = 'HBF_MODEL="$HBF_MODEL" ' if facts.around.model else ""
    dropped = ", and drops $HBF_MODEL" if facts.around.model else ""
    return Line("sudo", WARN, f"it does not find hbf-mount by name{dropped}", f"sudo {kept}{command} ...")


JUDGES = (user, privileges, user_namespaces, apparmor, propagation, sudo)
