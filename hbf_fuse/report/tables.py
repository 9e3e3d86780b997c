"""Markdown tables, and figures as tables show them."""

import re
from typing import Any

from hbf_fuse.documents import Row


def table(columns: tuple[str, ...], rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " ---: |" * len(columns)]
    lines += [
        "| " + " | ".join(inert(cell_text(row[column], column)) for column in columns) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def inert(text: str) -> str:
    """Text for Markdown that may quote others: no HTML, no links or pictures, no further line or column."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return _MARKUP.sub(lambda found: _ENTITIES[found[0]], plain)


_ENTITIES = {"<": "&lt;", "|": "&#124;", "[": "&#91;", "]": "&#93;"}
_MARKUP = re.compile("[" + re.escape("".join(_ENTITIES)) + "]")


def cell_text(value: Any, column: str = "") -> str:
    """A figure as tables show it: three decimals, or three digits if it is small; a dash for none.

    No bandwidth is unlimited.
    """
    if value is None:
        return "max" if column == "tier_mbps" else "-"
    if isinstance(value, float):
        if 0 < abs(value) < 0.1:
            return f"{value:.3g}"
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return str(value)
