"""`hbf set`: another tier under a live mount."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hbf_fuse.cli.common import tell
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import TierChange


@flattened
def change(mountpoint: Annotated[Path, typer.Argument(help="A live mount.")], tier: TierChange) -> None:
    """Change the tier of a live mount; reads in flight keep their deadlines, what is not given stays.

    Example: [bold]hbf set /mnt/hbf --mbps 250[/bold]
    """
    from hbf_fuse.fs import control
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points

    message = tier.given()
    if not message:
        raise typer.BadParameter("say what to change, such as --mbps 250")
    path = points.absolute(mountpoint)
    before = client.read_tier(path)
    after = control.applied(
        json.dumps(message).encode(), before
    )  # says what is wrong with it, which the mount cannot
    client.send(path, message)
    tell(f"{path}: {after}, was {before}")
