"""Options for llama-bench: what stands after `--` on a command line is not ours."""

from typing import Any

import typer
from typer.core import TyperCommand

_KEY = "hbf_fuse.passed_on"


class Passing(TyperCommand):
    """A command that keeps the words after `--` apart, unread."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Everything before `--` is the command's own."""
        if "--" in args:
            at = args.index("--")
            ctx.meta[_KEY] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)


def passed_on(ctx: typer.Context) -> tuple[str, ...]:
    """The words after `--`."""
    words: tuple[str, ...] = ctx.meta.get(_KEY, ())
    return words
