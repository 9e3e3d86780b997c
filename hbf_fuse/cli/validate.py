"""`hbf validate`: what others published, computed by this program."""

import fnmatch
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Column, Table
from rich.text import Text

from hbf_fuse.cli.common import Json, console, print_json
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.spreading import Spread
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.validate.computing import Result

_STYLES = {"within": "green", "missed": "red", "not reproduced": "yellow"}


@flattened
def validate(
    name: Annotated[
        str,
        typer.Argument(
            help="A value's name, or a pattern such as 'kyung-*'. \\[default: all]", show_default=False
        ),
    ] = "*",
    *,
    spread: Spread,
    as_json: Json = False,
) -> None:
    """Compute results that others published, and print them side by side: missed ones, too.

    Exit code 0 even where values are missed: they are known, and docs/validation.md explains each.

    Example: [bold]hbf validate 'son-*'[/bold]
    """
    from hbf_fuse.validate import computing, values

    wanted = [value for value in values.load() if fnmatch.fnmatchcase(value.name, name)]
    if not wanted:
        raise HbfError(f"no published value is called {name!r}", "`hbf validate` shows all")
    results = spread.over(computing.result, [(value,) for value in wanted], "computing")
    if as_json:
        print_json({"values": [_row(result) for result in results], **computing.counts(results)})
        return
    _print(results)


def _row(result: "Result") -> dict[str, Any]:
    figures = {"ours": result.ours, "error_pct": result.error_pct, "verdict": result.verdict}
    return {**asdict(result.value), **figures}


def _print(results: "list[Result]") -> None:
    from hbf_fuse.validate import computing

    table = Table(
        Column("value", max_width=30, overflow="fold"),
        Column("published", no_wrap=True),
        Column("ours", no_wrap=True),
        Column("error", no_wrap=True, justify="right"),
        Column("verdict", no_wrap=True),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    source = ""
    for result in results:
        value = result.value
        if value.source != source:
            source = value.source
            table.add_section()
        table.add_row(
            value.name,
            " ".join(filter(None, (value.bound, f"{value.published:g}", value.unit))),
            "" if result.ours is None else f"{result.ours:.4g}",
            "" if result.error_pct is None else f"{result.error_pct:+.1f}%",
            Text(result.verdict, style=_STYLES[result.verdict]),
        )
    screen = console()
    screen.print(table)
    for line in computing.summary(results):
        screen.print(line)
    screen.print("docs/validation.md has the sources, and a reason for every miss")
