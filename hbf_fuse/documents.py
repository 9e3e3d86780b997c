"""Reads untrusted TOML and JSON in bounded time and memory; writes files completely or not at all."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError, naming
from hbf_fuse.folder import Folder, read_file
from hbf_fuse.host import linux

Row = dict[str, Any]
"""Of a table: a value for each column."""

MAX_TOML_BYTES = 1 << 16
"""A grid or a table of tiers needs a thousandth of this."""

MAX_JSON_BYTES = 8 << 20
"""A run takes about 50 KB; with tens of thousands of experts, 2 MB. Parsed JSON takes up to 20 times its
size.
"""

MAX_DIGITS = 20
"""Of a whole number: 64 bits with a sign."""

_KEY_PART = r"""(?:"(?:[^"\\\n]|\\.){0,200}+"|'[^'\n]{0,200}+'|[\w-]++)"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{16}}")
"""Python's parser needs time in the square of a dotted key's parts. Longer quoted parts are not found; few of
them fit into MAX_TOML_BYTES.
"""


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file's tables. HbfError if it is not TOML, OSError if it cannot be read."""
    try:
        return parse_toml(_content(file, MAX_TOML_BYTES).decode())
    except ValueError as error:
        raise HbfError(f"{file} is not TOML: {error}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. ValueError says where it is not TOML."""
    if _LONG_KEY.search(text):
        raise ValueError("a key has more than 16 parts")
    try:
        document = tomllib.loads(text)
        _check_numbers(document)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return document


def read_json(file: Path) -> Any:
    """A JSON file's value. HbfError if it is not JSON, OSError if it cannot be read."""
    try:
        return parse_json(_content(file, MAX_JSON_BYTES))
    except ValueError as error:
        raise HbfError(f"{file} is not JSON: {error}") from error


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text. ValueError says where it is not JSON."""
    try:
        return json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json_in(folder: Folder, name: str) -> Any:
    """The same for a file in an open folder."""
    try:
        return parse_json(folder.read(name, MAX_JSON_BYTES))
    except ValueError as error:
        raise HbfError(f"{folder.path / name} is not JSON: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all; it survives a crash. Makes its folder.

    HbfError if it cannot be written.
    """
    try:
        Folder.at(path.parent).write(path.name, text)
    except OSError as error:
        raise _unwritten(path, error) from error


def write_in(folder: Folder, name: str, text: str) -> None:
    """The same in an open folder."""
    try:
        folder.write(name, text)
    except OSError as error:
        raise _unwritten(folder.path / name, error) from error


def inert_cell(value: Any) -> Any:
    """A CSV cell that a spreadsheet does not take for a formula: it would run formulas in any CSV that it
    opens.
    """
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _unwritten(path: Path, error: OSError) -> HbfError:
    return HbfError(f"cannot write {path}: {error.strerror}", "fix that and give the same command again")


def _content(file: Path, most: int) -> bytes:
    with naming(file):
        return read_file(os.open(file, linux.READ), most)


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number has {len(digits)} digits")
    return int(digits)


def _check_numbers(value: Any) -> None:
    """ValueError for a whole number beyond TOML's 64 bits: Python reads longer ones but cannot print them."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            _check_numbers(each)
    elif isinstance(value, int) and value.bit_length() > 64:
        raise ValueError("a whole number does not fit into 64 bits")
