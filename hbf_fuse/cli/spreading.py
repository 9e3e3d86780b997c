"""Options of commands that compute many points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer

from hbf_fuse.cli.common import progress_of

Result = TypeVar("Result")

PANEL = "Cores and machines"

Scheduler = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="tcp://HOST:PORT",
        help="On the workers of this Dask scheduler; docs/cluster.md says how to start them.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Spread:
    """Who computes."""

    jobs: Annotated[
        int | None,
        typer.Option(
            "-j",
            "--jobs",
            help="Processes on this machine. \\[default: one for each core]",
            min=1,
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None
    on: Scheduler = None

    def given(self) -> bool:
        """Whether the command line says anything."""
        return bool(self.jobs or self.on)

    def over(
        self, function: Callable[..., Result], items: Sequence[tuple[Any, ...]], what: str
    ) -> list[Result]:
        """function(*item) of each, in their order, with a bar. What it is given is pickled."""
        from hbf_fuse.cluster import cores, scheduler

        if self.on and self.jobs:
            raise typer.BadParameter("--jobs is of this machine, --on of others; give one")
        if self.on:
            found = scheduler.over(function, items, self.on)
        else:
            found = cores.over(function, items, self.jobs or cores.count())
        results = []
        with progress_of(what, len(items), brief=True) as advance:
            for result in found:
                results.append(result)
                advance(what)
        return results
