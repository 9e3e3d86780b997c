"""`hbf profile list` and `hbf profile show`."""

from typing import Annotated, Any

import typer

from hbf_fuse.cli import disks
from hbf_fuse.cli.common import Json, new_app, print_json
from hbf_fuse.cli.profiles import load
from hbf_fuse.errors import HbfError
from hbf_fuse.tier import TierSpec, expect, profiles

REAL_TIME_MBPS = 5000.0
"""What a fast machine serves through FUSE at best (docs/engines.md); hbf calibrate finds this machine's."""

MEMORY_MBPS = 8000.0
"""What mappings under the memory engine reach (docs/memory-speed.md); `tools/bench memory` finds this
machine's.
"""

app = new_app(
    help="Known devices, with where each value comes from; a real disk as a profile.\n\n"
    "Example: [bold]hbf profile show hbf-gen1[/bold]",
    no_args_is_help=True,
)


@app.command("list")
def list_profiles(as_json: Json = False) -> None:
    """List the profiles, and which engine serves each in real time on a machine like this.

    Example: [bold]hbf profile list[/bold]
    """
    known = [profiles.load(name) for name in profiles.names()]
    if as_json:
        print_json([_document(profile) for profile in known])
        return
    for profile in known:
        engine = engine_of(profile.spec())
        live = f"  (--engine {engine})" if engine else "  (not in real time)"
        print(f"{profile.name:16}{profile.spec()}{live}\n{'':16}{profile.about}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A profile's name, or a file NAME.toml.")], as_json: Json = False
) -> None:
    """Show one profile: every value, sourced, measured or assumed.

    Example: [bold]hbf profile show hbf-gen1[/bold]
    """
    profile = load(name)
    if as_json:
        print_json(_document(profile))
        return
    print(f"{profile.name}: {profile.about}")
    for key, known in profile.values.items():
        print(f"  {key:16}{known.value:<12}  {known.label}: {known.why}")
    if reason := beyond_real_time(profile.spec()):
        print(reason)


app.command()(disks.measure)
app.command()(disks.check)


def engine_of(spec: TierSpec) -> str:
    """The engine that serves a tier in real time, or "". Of mappings, what a thread on each core asks for
    counts: each waits for one chunk at a time.
    """
    if spec.bandwidth_mbps is None or spec.bandwidth_mbps <= REAL_TIME_MBPS:
        return "kernel"
    from hbf_fuse.engine import MEMORY
    from hbf_fuse.engine.memory import library
    from hbf_fuse.host import machine

    asked = expect.mapped_mbps(spec, machine.facts()["cores"] or 1)
    if asked is None or asked > MEMORY_MBPS:
        return ""
    try:
        library.twin()
    except HbfError:
        return ""
    return MEMORY


def beyond_real_time(spec: TierSpec, engine: str = "kernel") -> str:
    """Why no machine can serve this tier in real time, or nothing."""
    if spec.bandwidth_mbps is None or spec.bandwidth_mbps <= REAL_TIME_MBPS:
        return ""
    served_by = engine_of(spec)
    if served_by == engine:
        return ""
    if served_by:
        return (
            f"{spec.bandwidth_mbps:g} MB/s is more than a machine can serve through FUSE in real time: use "
            f"--engine {served_by}, which serves mappings"
        )
    return (
        f"{spec.bandwidth_mbps:g} MB/s is more than a machine can serve through FUSE in real time: a mount "
        "of it measures this machine's ceiling. Such a tier can only be simulated, in virtual time"
    )


def _document(profile: profiles.Profile) -> dict[str, Any]:
    values = {key: {"value": known.value, known.label: known.why} for key, known in profile.values.items()}
    return {
        "name": profile.name,
        "about": profile.about,
        "values": values,
        "real_time": bool(engine_of(profile.spec())),
        "engine": engine_of(profile.spec()) or None,
    }
