"""The man pages of hbf, hbf-mount, hbf-umount and hbf-sweep, made from the same command tree as --help.

They are part of the repository, so that a wheel can be built without the dependencies of the commands.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from hbf_fuse.cli import app, mount, sweep, umount

FOLDER = Path(__file__).parent.parent.parent / "share/man/man1"
_EXIT = (
    ("0", "Success."),
    ("1", "Failure: one line on standard error says what to do."),
    ("2", "Wrong usage."),
)
_ALONE: dict[str, Callable[..., None]] = {
    "hbf-mount": mount.mount,
    "hbf-umount": umount.umount,
    "hbf-sweep": sweep.sweep,
}


def pages() -> dict[Path, str]:
    """Every page by its path."""
    found = {FOLDER / "hbf.1": "\n".join(_page("hbf", get_command(app.app_of())))}
    for name, function in _ALONE.items():
        alone = typer.Typer(add_completion=False)
        alone.command()(function)
        found[FOLDER / f"{name}.1"] = "\n".join(_page(name, get_command(alone)))
    return found


def _page(name: str, command: Any) -> Iterator[str]:
    yield '.\\" Made by tools/pages from the help of the command. Do not edit.'
    yield f'.TH {name.upper()} 1 "" "hbf-fuse" "hbf-fuse"'
    yield from (".SH NAME", rf"{_text(name)} \- {_text(_summary(command))}")
    yield from (".SH SYNOPSIS", f".B {_text(name)}", _synopsis(command))
    yield from (".SH DESCRIPTION", *_about(command))
    yield from _options(command, ".SH OPTIONS", ".SS")
    for group, parts in _subcommands(command, name):
        yield f'.SH "{group}"'
        for title, part in parts:
            yield from (f'.SS "{_text(title)} {_synopsis(part)}"', *_about(part), *_options(part, "", ""))
    yield from (".SH EXIT STATUS", *(line for code, what in _EXIT for line in (".TP", code, _text(what))))
    others = sorted({"hbf", *_ALONE} - {name})
    yield from (".SH SEE ALSO", ", ".join(f"\\fB{_text(each)}\\fR(1)" for each in others), "")


def _subcommands(command: Any, name: str) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Headings with their commands: first commands of one word, then those of each group."""
    children = getattr(command, "commands", {})
    plain = [(f"{name} {each}", child) for each, child in children.items() if not hasattr(child, "commands")]
    if plain:
        yield "COMMANDS", plain
    for each, child in children.items():
        if hasattr(child, "commands"):
            yield (
                f"COMMANDS OF {name.upper()} {each.upper()}",
                [(f"{name} {each} {word}", part) for word, part in child.commands.items()],
            )


def _summary(command: Any) -> str:
    return re.split(r"[.:;\n]", _plain(command.help))[0].strip()


def _about(command: Any) -> Iterator[str]:
    """The help's paragraphs."""
    for paragraph in re.split(r"\n\s*\n", (command.help or "").strip()):
        yield from (".PP", _text(" ".join(paragraph.split())))


def _synopsis(command: Any) -> str:
    words = [r"[\fIOPTIONS\fR]"]
    words += ["COMMAND [ARGS]..."] if hasattr(command, "commands") else []
    for each in command.params:
        if each.param_type_name == "argument":
            word = each.metavar or each.name.rstrip(".").upper()
            word += "..." if each.nargs != 1 and not each.metavar else ""
            words.append(_text(word if each.required or word.startswith("[") else f"[{word}]"))
    return " ".join(words)


def _options(command: Any, heading: str, below: str) -> Iterator[str]:
    """Arguments and options. Options are grouped by the panels of the help."""
    panels: dict[str, list[Any]] = {}
    for each in command.params:
        if not getattr(each, "hidden", False):
            panels.setdefault(each.rich_help_panel or "", []).append(each)
    if heading and panels:
        yield heading
    for panel, options in sorted(panels.items(), key=lambda item: item[0] != ""):
        if panel:
            yield f'{below} "{panel}"' if below else f".PP\n{_text(panel)}:"
        for each in options:
            yield from (".TP", _term(each), _text(_help(each)))


def _term(option: Any) -> str:
    if option.param_type_name == "argument":
        return rf"\fI{_text(option.metavar or option.name.upper())}\fR"
    names = ", ".join(rf"\fB{_text(name)}\fR" for name in sorted(option.opts, key=len))
    if option.is_flag:
        return ", ".join([names, *(rf"\fB{_text(name)}\fR" for name in option.secondary_opts)])
    return rf"{names} \fI{_text(option.metavar or option.name.upper())}\fR"


def _help(option: Any) -> str:
    """The help, with the default if the help itself does not give it."""
    text = option.help or ""
    known = option.default
    shown = getattr(option, "show_default", False) and isinstance(known, str | int | float | Path)
    if not shown or isinstance(known, bool) or "[default" in text:
        return text
    return f"{text} [default: {known}]"


def _plain(text: str | None) -> str:
    """Text without rich's markup."""
    return re.sub(r"\[/?(bold|italic|dim)\]", "", text or "").replace("\\[", "[")


def _text(text: str) -> str:
    """Text in roff syntax. Bold text of rich is bold here, too."""
    text = text.replace("\\[", "[").replace("\\", r"\e").replace("-", r"\-")
    text = text.replace("[bold]", r"\fB").replace("[/bold]", r"\fR")
    return rf"\&{text}" if text.startswith((".", "'")) else text
