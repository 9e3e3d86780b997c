"""`hbf profile list` and `hbf profile show`."""

from typing import Annotated, Any

import typer

from hbf_fuse.cli.common import Json, new_app, print_json
from hbf_fuse.tier import TierSpec, profiles

REAL_TIME_MBPS = 5000.0
"""What a fast machine serves through FUSE at best (docs/engines.md); hbf calibrate finds this machine's."""

app = new_app(
    help="Known devices, with where each value comes from.\n\n"
    "Example: [bold]hbf profile show hbf-gen1[/bold]",
    no_args_is_help=True,
)


@app.command("list")
def list_profiles(as_json: Json = False) -> None:
    """List the profiles.

    Example: [bold]hbf profile list[/bold]
    """
    known = [profiles.load(name) for name in profiles.names()]
    if as_json:
        print_json([_document(profile) for profile in known])
        return
    for profile in known:
        beyond = "  (not in real time)" if beyond_real_time(profile.spec()) else ""
        print(f"{profile.name:16}{profile.spec()}{beyond}\n{'':16}{profile.about}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A profile's name.")], as_json: Json = False) -> None:
    """Show one profile: every value, sourced or assumed.

    Example: [bold]hbf profile show hbf-gen1[/bold]
    """
    profile = profiles.load(name)
    if as_json:
        print_json(_document(profile))
        return
    print(f"{profile.name}: {profile.about}")
    for key, known in profile.values.items():
        print(f"  {key:16}{known.value:<12g}{known.label}: {known.why}")
    if reason := beyond_real_time(profile.spec()):
        print(reason)


def beyond_real_time(spec: TierSpec) -> str:
    """Why no machine can serve this tier in real time, or nothing."""
    if spec.bandwidth_mbps is None or spec.bandwidth_mbps <= REAL_TIME_MBPS:
        return ""
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
        "real_time": not beyond_real_time(profile.spec()),
    }
