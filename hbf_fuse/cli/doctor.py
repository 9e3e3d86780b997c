"""`hbf doctor`: what this machine has and lacks."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hbf_fuse.cli.common import Json, print_json
from hbf_fuse.cli.paths import found

if TYPE_CHECKING:
    from hbf_fuse.doctor import Line

EXIT_FAIL = 3

_MARKS = {"ok": "[green]ok[/green]", "warn": "[yellow]warn[/yellow]", "fail": "[bold red]fail[/bold red]"}


def doctor(
    source: Annotated[
        Path | None,
        typer.Argument(
            help="A model, as for hbf-mount: also say whether where it lies is a good place.", parser=found
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at this machine: what works, what does not, and the command that fixes it.

    Example: [bold]hbf doctor model.gguf[/bold]

    Exit code 0: all is well, or warnings only. 3: something fails. Takes two seconds; it mounts a small file.
    """
    from hbf_fuse import doctor as examination

    lines = examination.examine(examination.collect(source))
    failed = any(line.state == examination.FAIL for line in lines)
    if as_json:
        print_json({"ok": not failed, "lines": [asdict(line) for line in lines]})
    else:
        _show(lines)
    if failed:
        raise typer.Exit(EXIT_FAIL)


def _show(lines: "list[Line]") -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(_MARKS[line.state], escape(line.name), escape(line.message))
        if line.remedy:
            table.add_row("", "", f"[dim]fix:[/dim] [cyan]{escape(line.remedy)}[/cyan]")
    console = Console(highlight=False)
    console.print(table)
    count = Counter(line.state for line in lines)
    console.print(f"\n{count['ok']} ok, {count['warn']} warn, {count['fail']} fail", style="bold")
