"""`hbf run`: any command under kernel limits."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hbf_fuse.cli.common import tell
from hbf_fuse.cli.options import limits_of
from hbf_fuse.cli.paths import found
from hbf_fuse.host import answers

if TYPE_CHECKING:
    from hbf_fuse.limits.files import Limits

_LIMITS = "Limits (at least one)"


def run(
    line: Annotated[
        list[str],
        typer.Argument(metavar="CMD", help="The command with its arguments, after --.", show_default=False),
    ],
    io_max: Annotated[
        float | None,
        typer.Option("--io-max", help="Most MB/s that are read from the disk.", rich_help_panel=_LIMITS),
    ] = None,
    riops: Annotated[
        int | None,
        typer.Option("--riops", help="Most reads per second that the disk may see.", rich_help_panel=_LIMITS),
    ] = None,
    mem: Annotated[
        str | None,
        typer.Option("--mem", help="Most memory, page cache included, such as 1G.", rich_help_panel=_LIMITS),
    ] = None,
    mem_high: Annotated[
        str | None,
        typer.Option(
            "--mem-high",
            help="Memory from which on it is reclaimed (cgroup v2 only).",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    device: Annotated[
        Path | None,
        typer.Option(
            "--device",
            help="The disk: a block device, or any file on it. \\[default: that of CMD's first argument that "
            "is a file, else of the current directory]",
            parser=found,
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Say what is in force as JSON: one line on stderr, before CMD's own."),
    ] = False,
) -> None:
    """Run a command under limits that the kernel enforces: real files, no FUSE. Exits as CMD does.

    Example: [bold]hbf run --io-max 500 --mem 1G -- llama-bench -m model.gguf[/bold]

    I/O limits hold for what is read from the disk: what is in the page cache already is read without.
    """
    from hbf_fuse.limits import command, devices
    from hbf_fuse.limits.process import CannotStart

    limits = limits_of(io_max, riops, mem, mem_high)
    if not limits.controllers:
        raise typer.BadParameter("give at least one limit: --io-max, --riops, --mem or --mem-high")
    if device is not None and not limits.io:
        raise typer.BadParameter("--device is of use with --io-max or --riops only")
    named = device or _first_file(line)
    disk = devices.of(named or Path.cwd()) if limits.io else None

    def tell_in_force(found: "Limits") -> None:
        if as_json:
            # Not on stdout: that is the command's.
            print(
                json.dumps({"disk": disk and asdict(disk), "in_force": asdict(found)}),
                file=sys.stderr,
                flush=True,
            )
        else:
            where = f" on {disk}, the disk of {named or 'the current directory'}" if disk else ""
            tell(f"in force{where}: {found}")
        if disk and named and named.is_file():
            _warn_if_cached(named)

    try:
        code = command.run(line, limits, disk, tell_in_force)
    except CannotStart as error:
        tell(str(error))
        code = error.exit_code
    raise typer.Exit(code)


_LONGEST_PATH = 4096


def _first_file(line: list[str]) -> Path | None:
    # Not Path.is_file: that raises an error for an argument which is too long for a path.
    for word in line[1:]:
        if len(word) < _LONGEST_PATH:
            answers.require(Path(word))
            if os.path.isfile(word):  # noqa: PTH113
                return Path(word)
    return None


def _warn_if_cached(file: Path) -> None:
    from hbf_fuse.host import residency
    from hbf_fuse.units import format_size

    if resident := residency.resident_bytes(file):
        tell(
            f"{format_size(resident)} of {file} are in the page cache and are read without limit; drop them "
            f"with `dd if={shlex.quote(str(file))} iflag=nocache count=0`"
        )
