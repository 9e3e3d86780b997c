"""`hbf set`: another tier under a live mount."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hbf_fuse.cli.common import tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import TierChange
from hbf_fuse.cli.paths import named


@flattened
def change(
    mountpoint: Annotated[Path, typer.Argument(help="A live mount.", parser=named)],
    tier: TierChange,
    phase: Annotated[
        str | None,
        typer.Option(
            "--phase", help="Count what is read from now on under this name; see hbf status --json."
        ),
    ] = None,
) -> None:
    """Change the tier of a live mount; reads in flight keep their deadlines, what is not given stays.

    Example: [bold]hbf set /mnt/hbf --mbps 250[/bold]
    """
    from hbf_fuse.fs import control
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points

    message = tier.given()
    if not message and phase is None:
        raise typer.BadParameter("say what to change, such as --mbps 250")
    path = points.absolute(mountpoint)
    if phase is not None:
        client.send(path, {control.PHASE: phase})
        tell(f"{path}: reads count as {phase!r} now")
    if message:
        send(path, message)


def send(path: Path, message: dict[str, Any]) -> None:
    """Change the tier of a live mount, and say from what to what. HbfError if it cannot have it.

    path: as mountpoint.absolute gives it. message: by the names in tier.spec.NAMES.
    """
    from hbf_fuse.fs import control
    from hbf_fuse.mount import client

    before = client.read_tier(path)
    after = control.applied(
        json.dumps(message).encode(), before
    )  # says what is wrong with it, which the mount cannot
    client.send(path, message)
    tell(f"{path}: {after}, was {before}")
