"""`hbf-mount` and `hbf mount`."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hbf_fuse import compiled
from hbf_fuse.cli.common import single, tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import (
    EngineName,
    MemoryOptions,
    Readahead,
    TierOptions,
    checked_engine,
    checked_links,
    limits_of,
)
from hbf_fuse.cli.paths import found, named
from hbf_fuse.cli.profile import beyond_real_time
from hbf_fuse.errors import HbfError
from hbf_fuse.tier import TierSpec, expect

Preload = Annotated[
    bool, typer.Option(help="Read the source into memory first, so that its disk cannot limit the tier.")
]


@flattened
def mount(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE] MOUNTPOINT",
            help="A GGUF, a directory of them, hf:ORG/REPO:QUANT or ollama:NAME; and an empty directory.",
            parser=named,
        ),
    ],
    tier: TierOptions,
    memory: MemoryOptions,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Write every read to this file; see `hbf trace`.", parser=found),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics", help="PORT for Prometheus, for this user alone; ADDRESS:PORT for all who reach it."
        ),
    ] = None,
    io_max: Annotated[
        float | None,
        typer.Option(
            "--io-max",
            help="Have the kernel limit the server's reads of SOURCE to this many MB/s, uncached.",
        ),
    ] = None,
    engine: EngineName = "kernel",
    readahead: Readahead = None,
    preload: Preload = True,
    priority: Annotated[
        int,
        typer.Option(
            "--priority",
            help="The server's nice value: -20 is most urgent (below 0 needs root).",
            min=-20,
            max=19,
        ),
    ] = 0,
    allow_other: Annotated[
        bool, typer.Option("--allow-other", help="Let other users read the mount.")
    ] = False,
    kv: Annotated[
        str | None,
        typer.Option("--kv", help="Size of a folder kv/ that takes files, such as 8G: for KV caches."),
    ] = None,
    kv_dir: Annotated[
        Path | None,
        typer.Option(
            "--kv-dir",
            help="Keep the files of kv/ in this folder. \\[default: in memory, until the unmount]",
            parser=found,
        ),
    ] = None,
    links: Annotated[
        str,
        typer.Option(
            "--links",
            help="Links in SOURCE that lead outside: tier serves their files, keep shows them as they are.",
        ),
    ] = "tier",
    foreground: Annotated[
        bool, typer.Option("-f", "--foreground", help="Stay, until Ctrl-C or umount.")
    ] = False,
    remount: Annotated[
        bool,
        typer.Option(
            "--remount",
            help="Change the tier of a live mount as `hbf set` does; other options wait for the next mount.",
        ),
    ] = False,
) -> None:
    """Serve a model from an emulated tier; returns when the mount answers.

    Example: [bold]hbf-mount --mbps 500 --lat 1 /mnt/hbf[/bold], then
    [bold]llama-bench -m /mnt/hbf/model.gguf[/bold], then [bold]hbf-umount /mnt/hbf[/bold].

    SOURCE defaults to $HBF_MODEL, then to `model` in ~/.config/hbf/config.toml, then to a small
    synthetic model that is made once.
    """
    given = dict(locals())
    from hbf_fuse.engine import MEMORY
    from hbf_fuse.models import choice
    from hbf_fuse.mount import daemon, mountpoint, server
    from hbf_fuse.units import parse_size

    if len(paths) > 2:
        raise typer.BadParameter("give at most a SOURCE and a MOUNTPOINT")
    if remount:
        _change(paths, tier, _not_of_the_tier(given))
        return
    if kv_dir and kv is None:
        raise typer.BadParameter("--kv-dir needs a size (--kv)")
    spec = tier.spec()
    limit = limits_of(io_max)
    _warn(spec, engine, io_max)
    target = mountpoint.absolute(paths[-1])
    if repaired := mountpoint.prepare(target):
        tell(repaired)
    config = server.MountConfig(
        source=choice.resolve(paths[0] if len(paths) == 2 else None, tell),
        mountpoint=target,
        spec=spec,
        engine=checked_engine(engine),
        readahead_kib=readahead,
        preload=preload,
        priority=priority,
        allow_other=allow_other,
        layout=memory.layout(None if memory.resident is None else parse_size(memory.resident)),
        trace=trace.absolute() if trace else None,
        metrics=metrics,
        io_max_mbps=limit.io_mbps,
        links=checked_links(links),
        kv_bytes=None if kv is None else parse_size(kv),
        kv_dir=kv_dir.absolute() if kv_dir else None,
    )
    if target == config.source or target in config.source.parents:
        raise HbfError(f"the source {config.source} lies under the mountpoint", "mount somewhere else")

    if engine == MEMORY and (each := expect.mapped_mbps(spec)):
        tell(f"without readahead, a thread that reads through a mapping gets at most {each:.0f} MB/s")

    def ready(remark: str) -> None:
        slower = ", uncompiled and slower: `hbf doctor` says why" if compiled.why_not() else ""
        tell(f"{config.source} is served at {target} ({spec}{slower})")
        if remark:
            tell(remark)

    if foreground:
        server.serve(config, when_ready=ready, tell=tell)
    else:
        ready(daemon.start(config, tell))


def _change(paths: list[Path], tier: TierOptions, others: list[str]) -> None:
    """Do to a live mount what `hbf set` does, given a whole line of options, as of fstab."""
    from hbf_fuse.cli import set as change
    from hbf_fuse.fs import control
    from hbf_fuse.host import mountinfo
    from hbf_fuse.models import choice
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points

    path = points.absolute(paths[-1])
    served = client.read_spec(path)["source"]
    source = str(paths[0]) if len(paths) == 2 else served
    # What is served may be gone by now, and is no less served.
    if source != served and (found := choice.file_of(paths[0])) != Path(served):
        raise HbfError(f"{path} serves {served}, not {found}", f"`hbf-umount {path}`, then mount again")
    if message := tier.given() if tier.profile is None else control.current(tier.spec()):
        change.send(path, message)
    if (mounted := mountinfo.find(path)) and "allow_other" in mounted.options:
        others = [option for option in others if option != "--allow-other"]
    if others:
        tell(f"{path} keeps what it began with; for the next mount: {', '.join(others)}")


def _not_of_the_tier(given: dict[str, Any]) -> list[str]:
    """Options that differ from their defaults and that no live mount can take."""
    found = [name for name, value in asdict(given["memory"]).items() if value is not None]
    for name, parameter in inspect.signature(inspect.unwrap(mount)).parameters.items():
        if name not in ("paths", "tier", "memory", "remount") and given[name] != parameter.default:
            found.append(name if given[name] is not False else f"no-{name}")
    return [f"--{name.replace('_', '-')}" for name in found]


def _warn(tier: TierSpec, engine: str, io_max: float | None) -> None:
    """Say what may keep this machine from serving the tier within tolerance."""
    from hbf_fuse.calibrate import envelope

    known, ignored = envelope.load()
    reasons = [
        beyond_real_time(tier, engine),
        str(ignored or ""),
        envelope.doubt(tier, known, engine) if known else "",
    ]
    if io_max and tier.bandwidth_mbps and io_max < tier.bandwidth_mbps:
        reasons.append(f"--io-max {io_max:g} keeps the tier below its {tier.bandwidth_mbps:g} MB/s")
    for reason in filter(None, reasons):
        tell(reason)


main = single(mount)
