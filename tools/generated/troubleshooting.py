"""The tables of docs/troubleshooting.md: message and remedy come from the code, the last column from the
page.

A row belongs to the error with the same message. A message that the page lacks is added to a separate table
at the end; somebody must explain and move it. A row whose message is gone from the code is left out.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import hbf_fuse

PACKAGE = Path(hbf_fuse.__file__).parent
PAGE = Path(__file__).parent.parent.parent / "docs/troubleshooting.md"
SHORTEST = 8
"""Least length of a message's constant part. Shorter ones cannot be distinguished from other messages."""

HEAD = ["| message | what to do | why |", "| --- | --- | --- |"]
UNEXPLAINED = "## Not explained yet"

_NAMED = {"BadParameter", "of_system"} | {
    found
    for path in PACKAGE.rglob("*.py")
    for found in re.findall(r"^class (\w+)\(HbfError\)", path.read_text(), re.MULTILINE)
}
_SILENT = {"OSError", "FuseOSError", "RuntimeError", "ModuleNotFoundError", "IndexError"}
"""Errors for programs: an errno or a name, not a line."""


_VARIES = ["", ""]
"""A text without a constant part."""


class Message(NamedTuple):
    """The message of an error, with ... for parts that vary. key: its longest constant part.

    Modules that cannot import the errors (tier/, units) put message and remedy into one text, with a
    semicolon between.
    """

    where: str
    key: str
    what: str
    remedy: str


def messages() -> list[Message]:
    """The messages of every error in the code."""
    return [
        message
        for path in sorted(PACKAGE.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and call.args and _is_error(call.func)
        for message in _of(call, f"{path.relative_to(PACKAGE.parent)}:{call.lineno}")
    ]


def _of(call: ast.Call, where: str) -> Iterator[Message]:
    whats = list(_texts(call.args[0]))
    remedies = [[""]]
    if len(call.args) > 1:
        whats = whats or [_VARIES]
        remedies = list(_texts(call.args[1])) or [_VARIES]
    for text in whats:
        key = max(text + remedies[0], key=len).strip()
        what, _, after = _whole(text).partition("; ")
        yield Message(where, key, what, _whole(remedies[0]) or after)


def _is_error(function: ast.expr) -> bool:
    name = getattr(function, "id", "") or getattr(function, "attr", "")
    return name in _NAMED or (name.endswith("Error") and name not in _SILENT)


def _texts(node: ast.expr) -> Iterator[list[str]]:
    """The constant parts of each text in an expression; `x or "y"` and `"a" if b else "c"` hold several."""
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values]
        yield "".join(parts).split("\0")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield [node.value]
    elif isinstance(node, ast.BoolOp | ast.IfExp):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from _texts(child)


def _whole(parts: list[str]) -> str:
    """The form of a text on the page."""
    return " ".join("...".join(parts).split()).replace("|", "\\|")


def plain(text: str) -> str:
    """A text without Markdown syntax."""
    return re.sub(r"\s+", " ", text.replace("`", "").replace("\\|", "|"))


def page() -> str:
    """The page with the messages as the code has them now."""
    known = {(plain(message.what), plain(message.remedy)): message for message in messages()}
    telling = [message for message in known.values() if len(message.key) >= SHORTEST]
    lines: list[str] = []
    shown = set()
    for line in PAGE.read_text().splitlines():
        row = _cells(line)
        if row is None:
            lines.append(line)
        elif message := known.get((plain(row[0]), plain(row[1]))) or _only(known.values(), row[0]):
            if message not in shown:
                lines.append(_row(message, row[-1]))
            shown.add(message)
        elif any(plain(other.key) in plain(row[0]) for other in telling):
            lines.append(line)  # a message with a variable part, written out
    missing = [message for message in telling if message not in shown and not _within(message, lines)]
    if missing:
        lines += ["", UNEXPLAINED, "", *HEAD, *(_row(message, "") for message in missing)]
    return "\n".join(lines) + "\n"


def _only(known: Iterable[Message], what: str) -> Message | None:
    """The one message with this text, if its remedy says something: it is no longer what the row has."""
    found = [message for message in known if plain(message.what) == plain(what)]
    constant = found[0].remedy.replace("...", "").strip() if len(found) == 1 else ""
    return found[0] if len(constant) >= SHORTEST else None


def _within(message: Message, lines: list[str]) -> bool:
    return any(plain(message.key) in plain(line) for line in lines if line.startswith("| "))


def _cells(line: str) -> list[str] | None:
    """The cells of a row; None for other lines."""
    if not line.startswith("| ") or line in HEAD:
        return None
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def _row(message: Message, why: str) -> str:
    return f"| {message.what} | {message.remedy} | {why} |"
