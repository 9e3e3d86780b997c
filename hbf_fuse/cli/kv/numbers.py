"""Lists of numbers, as `hbf kv` takes them."""

import typer

from hbf_fuse.cli.sweep import numbers


def floats(text: str, option: str) -> list[float]:
    found = [float(value) for value in numbers(text, option) or []]
    if not found:
        raise typer.BadParameter(f"{option}: the list is empty")
    return found


def contexts(text: str) -> list[int]:
    counts = [within(tokens, "--context", 1, 100_000_000) for tokens in floats(text, "--context")]
    if any(count % 1 for count in counts):
        raise typer.BadParameter("--context counts tokens: whole numbers")
    return [int(count) for count in counts]


def within(value: float, option: str, least: float, most: float) -> float:
    """A number within its bounds, which NaN never is, or wrong usage."""
    if not least <= value <= most:
        raise typer.BadParameter(f"{option} must be from {least:g} to {most:g}, got {value:g}")
    return value
