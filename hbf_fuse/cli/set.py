"""`hbf set`: another tier under a live mount."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hbf_fuse.cli.common import tell
from hbf_fuse.cli.options import Depth, Jitter, Lat, Page, Planes, Seed, TRead, bandwidth


def change(
    mountpoint: Annotated[Path, typer.Argument(help="A live mount.")],
    mbps: Annotated[float | None, bandwidth("as it was")] = None,
    lat: Lat = None,
    jitter: Jitter = None,
    seed: Seed = None,
    planes: Planes = None,
    page: Page = None,
    t_read: TRead = None,
    depth: Depth = None,
) -> None:
    """Change the tier of a live mount; reads in flight keep their deadlines, what is not given stays.

    Example: [bold]hbf set /mnt/hbf --mbps 250[/bold]
    """
    from hbf_fuse.fs import control
    from hbf_fuse.mount import client
    from hbf_fuse.mount import mountpoint as points

    given = {
        "mbps": mbps,
        "lat": lat,
        "jitter": jitter,
        "seed": seed,
        "planes": planes,
        "page": page,
        "t_read": t_read,
        "depth": depth,
    }
    message = {key: value for key, value in given.items() if value is not None}
    if not message:
        raise typer.BadParameter("say what to change, such as --mbps 250")
    path = points.absolute(mountpoint)
    before = client.read_tier(path)
    after = control.applied(
        json.dumps(message).encode(), before
    )  # says what is wrong with it, which the mount cannot
    client.send(path, message)
    tell(f"{path}: {after}, was {before}")
