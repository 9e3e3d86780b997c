"""Paths on a command line: a command does not wait for ever for a mount that is stuck."""

from pathlib import Path

import typer

from hbf_fuse.host import answers


def named(text: str) -> Path:
    """A path whose folder answers. Itself it may be a mount that does not, to be ended, or a model's name.

    An empty one, as of a variable that is not set, is wrong usage, not the current directory.
    """
    if not text:
        raise typer.BadParameter("a path is empty: is a variable not set?")
    answers.require(Path(text).parent)
    return Path(text)


def found(text: str) -> Path:
    """A path that answers itself, too, or where nothing is: NoAnswer, not a command that waits for ever."""
    path = named(text)
    answers.require(path)
    return path
