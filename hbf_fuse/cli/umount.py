"""`hbf-umount` and `hbf umount`."""

from pathlib import Path
from typing import Annotated

import typer

from hbf_fuse.cli.common import single
from hbf_fuse.cli.paths import named


def umount(
    mountpoint: Annotated[Path, typer.Argument(help="Where hbf is mounted.", parser=named)],
    force: Annotated[
        bool, typer.Option("--force", help="Also when it is in use: its users get errors.")
    ] = False,
) -> None:
    """End a mount and wait until its server is gone.

    Example: [bold]hbf-umount /mnt/hbf[/bold]
    """
    from hbf_fuse.mount import client

    client.unmount(mountpoint, force)


main = single(umount)
