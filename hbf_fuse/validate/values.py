"""Published values as data: one TOML file for each source, in `published/`.

A file holds `source`, and `[[value]]` tables with the keys of Value. Each value has either `by` (a
computation of computing.py) with its `inputs`, or `not_reproduced`, the reason why it cannot be.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError

UNITS = {
    "times": 1.0,
    "TB/s": 1e12,
    "GB/s": 1e9,
    "MB/s": 1e6,
    "MiB/s": 1 << 20,
    "GB": 1e9,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "MB": 1e6,
    "KB": 1e3,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "days": 86_400.0,
    "years": 365 * 86_400.0,
    "tokens/s": 1.0,
    "reads/s": 1.0,
    "streams": 1.0,
    "cycles": 1.0,
}
"""What a unit is in bytes, seconds, or both; pure numbers as they are."""

DEFAULT_TOLERANCE_PCT = 5.0
BOUNDS = ("", "at most", "at least")


@dataclass(frozen=True)
class Value:
    """name: unique. section: where in the source. what: one sentence. published: in `unit`. bound: what was
    published is a bound. read: in the original, off a figure, or second-hand and whose. forecast: whether at
    least one input comes from another measurement than the value; else it tests formulas and units.
    """

    name: str
    source: str
    section: str
    what: str
    published: float
    unit: str
    read: str
    bound: str = ""
    by: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    tolerance_pct: float = DEFAULT_TOLERANCE_PCT
    forecast: bool = False
    remark: str = ""
    not_reproduced: str = ""


_KNOWN = {each.name for each in fields(Value)} - {"source"}
_KINDS: dict[str, Any] = {
    **dict.fromkeys(
        ("name", "section", "what", "unit", "read", "by", "bound", "remark", "not_reproduced"), str
    ),
    **dict.fromkeys(("published", "tolerance_pct"), int | float),
    "inputs": dict,
    "forecast": bool,
}
_NEEDED = ("name", "section", "what", "published", "unit", "read")


def load() -> list[Value]:
    """All of them, by source."""
    files = resources.files(__package__).joinpath("published").iterdir()
    found = [
        value
        for file in sorted(files, key=lambda each: each.name)
        if file.name.endswith(".toml")
        for value in parse(file.name, file.read_text(encoding="utf-8"))
    ]
    names = [value.name for value in found]
    for name in names:
        if names.count(name) > 1:
            raise HbfError(f"two published values are called {name}")
    return found


def parse(name: str, text: str) -> list[Value]:
    """The values of a file. HbfError names what is wrong, an unknown key among it."""
    try:
        document = documents.parse_toml(text)
    except ValueError as error:
        raise HbfError(f"{name} is not TOML: {error}") from error
    source, tables = document.pop("source", None), document.pop("value", None)
    if document:
        raise HbfError(f"{name}: unknown key {next(iter(document))!r}; known: source, value")
    if not isinstance(source, str) or not isinstance(tables, list):
        raise HbfError(f"{name}: `source` or [[value]] is missing")
    return [_value(name, source, table) for table in tables]


def _value(file: str, source: str, table: Any) -> Value:
    where = f"{file}, {table.get('name', 'a value')}" if isinstance(table, dict) else file
    if not isinstance(table, dict):
        raise HbfError(f"{where}: `value` is no list of tables")
    if unknown := sorted(set(table) - _KNOWN):
        raise HbfError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KNOWN))}")
    if missing := [key for key in _NEEDED if key not in table]:
        raise HbfError(f"{where}: {missing[0]} is missing")
    if table["unit"] not in UNITS:
        raise HbfError(f"{where}: unknown unit {table['unit']!r}; known: {', '.join(UNITS)}")
    for key, kinds in _KINDS.items():
        if key in table and (
            isinstance(table[key], bool) != (kinds is bool) or not isinstance(table[key], kinds)
        ):
            raise HbfError(f"{where}: `{key}` has another type")
    if not (math.isfinite(table["published"]) and table["published"]):
        raise HbfError(f"{where}: `published` is no number that can be compared with")
    if table.get("bound", "") not in BOUNDS:
        raise HbfError(f"{where}: unknown bound {table['bound']!r}; known: {', '.join(BOUNDS[1:])}")
    if bool(table.get("by")) == bool(table.get("not_reproduced")):
        raise HbfError(f"{where}: needs one of `by` and `not_reproduced`")
    return Value(source=source, **table)
