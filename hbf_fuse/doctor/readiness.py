"""Judges whether the machine is in a state for measurements, and what it has for them."""

from hbf_fuse.doctor.facts import Facts
from hbf_fuse.doctor.line import FAIL, OK, WARN, Line, of_concerns
from hbf_fuse.doctor.serving import wsl
from hbf_fuse.errors import HbfError
from hbf_fuse.mount.mountpoint import MOUNT_TYPE
from hbf_fuse.sweep import conditions
from hbf_fuse.units import format_size

LOW_MEMORY = 1 << 30
_WSL_MEMORY = (
    "set memory= under [wsl2] in %UserProfile%\\.wslconfig, then `wsl --shutdown`; or use a small model"
)

_WANTED_FLAGS = {
    "--no-warmup": "its warm-up reads the weights once more",
    "--progress": "prefill and decode cannot be told apart",
    "--repack": "mode stream may decode from a copy in memory",
}
"""What is lost without each flag: older builds lack some."""

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs", "afs", "fuse.sshfs", "fuse.rclone")
_SLOW = {
    "drvfs": "a Windows drive",
    **dict.fromkeys(("9p", "virtiofs", "vboxsf"), "a folder of the host"),
    **dict.fromkeys(_NETWORK, "a network"),
}
"""File systems so slow that their speed would be taken for the tier's."""
_MEMORY = ("tmpfs", "ramfs")
_BUILD = "tools/llama-bench-build"


def governor(facts: Facts) -> Line:
    """With a clock that follows the load, figures vary."""
    told = facts.now["governors"]
    return of_concerns("CPU governor", conditions.governor(facts.now), ", ".join(told) or "none visible")


def power(facts: Facts) -> Line:
    """Laptops on battery are slower."""
    told = {True: "on mains", None: "no battery"}.get(facts.now["on_mains"], "")
    return of_concerns("power", conditions.power(facts.now), told)


def memory(facts: Facts) -> Line:
    """Source, page cache and llama-bench share the memory."""
    free = facts.now["memory_available_bytes"]
    told = f"{format_size(free)} of {format_size(facts.memory_bytes)} available"
    if facts.source and facts.source.size:
        return of_concerns("memory", conditions.memory(facts.now, facts.source.size), told)
    if free < LOW_MEMORY:
        if wsl(facts.proc_version) == 2:
            return Line("memory", WARN, told, _WSL_MEMORY)
        return Line("memory", WARN, told, "close programs, or use a small model")
    return Line("memory", OK, told)


def load(facts: Facts) -> Line:
    """Other programs that use a core while a tier is measured."""
    told = f"{facts.now['load_1min']:.1f} on {facts.cores} cores"
    return of_concerns("load", (concern for concern in facts.busy if concern.name == "load"), told)


def page_cache(facts: Facts) -> Line | None:
    """Whether staged data stays in memory."""
    return next(
        (of_concerns(each.name, [each], "") for each in facts.busy if each.name == "page cache"), None
    )


def llama_bench(facts: Facts) -> Line:
    """The llama-bench for sweeps, and which of the wanted flags it has."""
    bench = facts.bench
    if isinstance(bench, HbfError):
        return Line("llama-bench", FAIL, bench.what, _BUILD)
    told = f"{bench.path.parent.name}/{bench.path.name}"
    if bench.version != "unknown":
        told += f", {bench.version.removeprefix('version: ').partition(' (')[0]}"
    missing = [f"no {flag}: {loss}" for flag, loss in _WANTED_FLAGS.items() if flag not in bench.flags]
    if missing:
        return Line("llama-bench", WARN, f"{told}; {'; '.join(missing)}", _BUILD)
    return Line("llama-bench", OK, told)


def llama_server(facts: Facts) -> Line:
    """The llama-server for the workload serve. Most people need none."""
    if isinstance(facts.server, HbfError):
        return Line("llama-server", OK, "none; --workload serve alone needs one")
    return Line("llama-server", OK, f"{facts.server.parent.name}/{facts.server.name}")


def envelope(facts: Facts) -> Line:
    """What this machine can emulate, if it was measured."""
    if isinstance(facts.envelope, HbfError):
        return Line("envelope", WARN, facts.envelope.what, "hbf calibrate")
    ceilings = [
        f"{name} engine up to {engine['ceiling_mbps']:.0f} MB/s"
        for name, engine in facts.envelope["engines"].items()
    ]
    return Line("envelope", OK, ", ".join(ceilings))


def source(facts: Facts) -> Line | None:
    """Where the model is: its disk must not be mistaken for the tier."""
    if facts.source is None:
        return None
    path, fstype, options = facts.source.path, facts.source.fstype, facts.source.options
    if fstype is None:
        return Line("source", FAIL, f"{path} does not exist", "hbf model make tiny -o FILE")
    # WSL2 mounts Windows drives as 9p or virtiofs, and says drvfs among the options.
    kind = "drvfs" if "drvfs" in options else fstype
    if kind in _SLOW:
        return Line("source", WARN, f"on {_SLOW[kind]} ({fstype}), which is slow", f"cp {path} ~/")
    if fstype == MOUNT_TYPE:
        return Line("source", WARN, "in a mount of hbf: a tier on a tier", "name what that one serves")
    if fstype in _MEMORY:
        return Line("source", OK, f"in memory ({fstype}); io limits cannot apply to it")
    return Line("source", OK, f"on {fstype}")


def model(facts: Facts) -> Line | None:
    """Whether the source is a sound model. Any file is served, but llama.cpp loads only a whole GGUF."""
    if facts.source is None or facts.source.fstype is None:
        return None
    if facts.source.defect:
        return Line("model", WARN, facts.source.defect, "name a whole GGUF: hbf model info FILE checks one")
    return Line("model", OK, "a sound GGUF" if facts.source.size else "holds a GGUF")


JUDGES = (governor, power, memory, load, page_cache, llama_bench, llama_server, envelope, source, model)
