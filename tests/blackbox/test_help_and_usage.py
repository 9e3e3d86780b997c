"""Every command has help with an example. Its exit code distinguishes wrong usage from failure."""

from __future__ import annotations

import pytest
from sandbox import Box

COMMANDS = (
    ("hbf-mount",),
    ("hbf-umount",),
    ("hbf-sweep",),
    ("hbf", "mount"),
    ("hbf", "umount"),
    ("hbf", "status"),
    ("hbf", "bench"),
    ("hbf", "sweep"),
    ("hbf", "model", "make"),
    ("hbf", "model", "info"),
    ("hbf", "model"),
    ("hbf",),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(box: Box, command: tuple[str, ...]) -> None:
    result = box.run(*command, "--help").succeeds()
    assert "Usage" in result.out
    assert "Example" in result.out, result


@pytest.mark.parametrize(
    "command", [("hbf-umount",), ("hbf", "bench"), ("hbf", "model", "make")], ids=" ".join
)
def test_an_unknown_option_is_wrong_usage(box: Box, command: tuple[str, ...]) -> None:
    box.run(*command, "--no-such-option").is_wrong_usage("Usage", "--no-such-option")


def test_an_unknown_command_is_wrong_usage(box: Box) -> None:
    box.run("hbf", "no-such-command").is_wrong_usage("no-such-command")
    box.run("hbf", "model", "no-such-command").is_wrong_usage("no-such-command")


@pytest.mark.parametrize("command", [("hbf-umount",), ("hbf", "model", "make"), ("hbf", "model", "info")])
def test_a_missing_argument_is_wrong_usage(box: Box, command: tuple[str, ...]) -> None:
    box.run(*command).is_wrong_usage("Missing argument")
