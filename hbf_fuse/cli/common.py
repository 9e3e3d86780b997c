"""What every command shares: how errors end, where remarks go, how JSON is printed."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from hbf_fuse import signals, streams
from hbf_fuse.errors import HbfError, of_defect, of_system
from hbf_fuse.folder import Folder

MAX_MESSAGE = 2000
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def tell(message: str) -> None:
    """A remark for the person, a line on stderr."""
    streams.say(f"hbf: {printable(message)}")


def printable(text: str) -> str:
    """Without control characters, whatever it quotes: names that others chose are no orders to a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def console(to_stderr: bool = False) -> Console:
    """Where tables are printed: what is in brackets is part of a name, not markup."""
    return Console(stderr=to_stderr, markup=False, emoji=False, highlight=False)


def warn_of_others(folder: Folder) -> None:
    """Root is told where somebody else may change what it measures into."""
    if os.geteuid() == 0 and folder.is_shared:
        tell(f"another user may change what is in {folder.path}: its results are as good as that user's word")


def print_json(document: Any) -> None:
    """A document for scripts, on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))


def new_app(completes: bool = False, **options: Any) -> typer.Typer:
    """A typer application with our conventions. completes: it is a command that shells can complete."""
    return typer.Typer(
        add_completion=completes,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode="rich",
        **options,
    )


@contextmanager
def progress_of(what: str, total: int, brief: bool = False) -> Iterator[Callable[[str], None]]:
    """A bar on stderr with the time left; yields what counts one step and says what the last one was.
    Without any steps there is no bar. brief: it is gone afterwards, and a log gets none.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    screen = console(to_stderr=True)
    # Steps may take minutes: the speed is that of the last hour.
    hidden = not total or (brief and not screen.is_terminal)
    with Progress(
        *columns, console=screen, speed_estimate_period=3600, disable=hidden, transient=brief
    ) as progress:
        task = progress.add_task(what, total=total)

        def advance(last: str) -> None:
            progress.update(task, advance=1, description=last)
            if not screen.is_terminal and last != what:
                # A log gets a line for each step that has something to say.
                tell(f"{progress.tasks[task].completed:.0f} of {total}: {last}")

        yield advance


def guarded(action: Callable[[], Any], failure: int = 1) -> None:
    """Call, and turn errors that a person can fix into one line and exit code `failure`; Ctrl-C into 130.

    Wrong usage ends with 2: typer does that itself.
    """
    signal.signal(signal.SIGTERM, _terminated)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # else it is to outlive its terminal, as with nohup
        signal.signal(signal.SIGHUP, _terminated)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signals.sent_again_if_lost()
    signals.watch()
    try:
        try:
            action()
        finally:
            # Not when Python ends: that prints a traceback.
            sys.stdout.flush()
    except (HbfError, ValueError) as error:
        fail(str(error), failure)
    except BrokenPipeError:
        sys.exit(failure)
    except OSError as error:
        fail(str(of_system(error)), failure)
    except KeyboardInterrupt:
        streams.say("")
        sys.exit(130)
    except Exception as error:
        if os.environ.get("HBF_TRACEBACK"):
            raise
        fail(str(of_defect(error)), failure)


def _terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM or SIGHUP ends a command as Ctrl-C does: everything is cleaned up on the way out."""
    sys.exit(128 + number)


def fail(message: str, code: int = 1) -> NoReturn:
    """One line on stderr, cut short if need be, and the end."""
    line = " ".join(message.split())
    tell(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}...")
    sys.exit(code)


def single(
    command: Callable[..., None], kind: type[typer.core.TyperCommand] = typer.core.TyperCommand
) -> Callable[[], None]:
    """An entry point that is one command, such as hbf-mount."""

    def main() -> None:
        app = new_app(completes=True)
        app.command(cls=kind)(command)
        guarded(app)

    return main
