"""`hbf`: all commands under one name."""

import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

import hbf_fuse
from hbf_fuse.cli.common import guarded, new_app
from hbf_fuse.cli.passing import Passing


@dataclass(frozen=True)
class _Command:
    """Where a command is: a file beside this one, and its function; a group of commands has none, but an
    `app`. how: what typer must know of it.
    """

    room: str
    function: str = ""
    how: Mapping[str, Any] = field(default_factory=dict)


# The options of what they run are its own.
_RUNS = {"context_settings": {"allow_interspersed_args": False}}

COMMANDS = {
    "mount": _Command("mount", "mount"),
    "umount": _Command("umount", "umount"),
    "status": _Command("status", "status"),
    "set": _Command("set", "change"),
    "top": _Command("top", "top"),
    "doctor": _Command("doctor", "doctor"),
    "bench": _Command("bench", "bench", {"cls": Passing}),
    "calibrate": _Command("calibrate", "calibrate"),
    "sweep": _Command("sweep", "sweep", {"cls": Passing}),
    "report": _Command("report", "report"),
    "validate": _Command("validate", "validate"),
    "run": _Command("run", "run", _RUNS),
    "exec": _Command("execute", "execute", _RUNS),
    "predict": _Command("predict", "predict"),
    "model": _Command("model"),
    "profile": _Command("profile"),
    "trace": _Command("trace"),
    "kv": _Command("kv"),
}
"""By name, in the order of the help."""


def app_of(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """`hbf` with these commands."""
    app = new_app(
        help="Emulate High Bandwidth Flash: serve a GGUF at a tier's bandwidth and latency, and measure.\n\n"
        "Example: [bold]hbf mount --mbps 500 --lat 1 /mnt/hbf[/bold], or "
        "[bold]hbf sweep --mbps 250,500[/bold]",
        no_args_is_help=True,
        completes=True,
    )
    app.callback()(_root)
    for name in names:
        command = COMMANDS[name]
        room = importlib.import_module(f"hbf_fuse.cli.{command.room}")
        if command.function:
            app.command(name, **command.how)(getattr(room, command.function))
        else:
            app.add_typer(room.app, name=name)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hbf-fuse {hbf_fuse.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point."""
    # A command alone loads in half the time. Help, completion and mistakes need all of them.
    called = sys.argv[1:2]
    guarded(app_of(called if called and called[0] in COMMANDS else COMMANDS))
