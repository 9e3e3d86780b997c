"""`hbf`: all commands under one name."""

from typing import Annotated

import typer

import hbf_fuse
from hbf_fuse.cli import kv, model, profile, trace
from hbf_fuse.cli.bench import bench
from hbf_fuse.cli.calibrate import calibrate
from hbf_fuse.cli.common import guarded, new_app
from hbf_fuse.cli.doctor import doctor
from hbf_fuse.cli.mount import mount
from hbf_fuse.cli.report import report
from hbf_fuse.cli.run import run
from hbf_fuse.cli.set import change
from hbf_fuse.cli.status import status
from hbf_fuse.cli.sweep import sweep
from hbf_fuse.cli.top import top
from hbf_fuse.cli.umount import umount

app = new_app(
    help="Emulate High Bandwidth Flash: serve a GGUF at a tier's bandwidth and latency, and measure.\n\n"
    "Example: [bold]hbf mount --mbps 500 --lat 1 /mnt/hbf[/bold], or [bold]hbf sweep --mbps 250,500[/bold]",
    no_args_is_help=True,
    completes=True,
)
app.command()(mount)
app.command()(umount)
app.command()(status)
app.command("set")(change)
app.command()(top)
app.command()(doctor)
app.command()(bench)
app.command()(calibrate)
app.command()(sweep)
app.command()(report)
# The options of CMD are its own.
app.command(context_settings={"allow_interspersed_args": False})(run)
app.add_typer(model.app, name="model")
app.add_typer(profile.app, name="profile")
app.add_typer(trace.app, name="trace")
app.add_typer(kv.app, name="kv")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hbf-fuse {hbf_fuse.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point."""
    guarded(app)
