"""How fuzzing damages valid documents: edits that are encoded in bytes.

Bytes that begin with EDITS are edits, so that most inputs get past the parsers. Other bytes are taken as they
are.
"""

import copy
import json
import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

EDITS = 0xFF
_EDIT = struct.Struct("<HB")
MAX_EDITS = 6

Document = dict[str, Any]

_REMOVE = object()
# fmt: off
_HOSTILE: tuple[Any, ...] = (
    _REMOVE, None, True, False,
    0, 1, -1, 2, 255, 2**31, 2**32 - 1, 2**62, 2**63, -(2**63), 2**64 - 1, 10**30, 10**400,
    0.0, 0.5, -0.5, 1e-300, 1e300, math.inf, -math.inf, math.nan, 60_000, 60_001,
    "", "x", "\0", "a\nb", "\x1b[2J", "\ud800", "x" * 5000, "9" * 400, "~nobody/x", "25%", "max", "nan",
    "mmap", "stage", "stream", "pin", "profile", "normal:0.1", "tail:1,2",
    "(", "(" * 5000, "a{4294967296}", "=", "x=hbf",
    [], [None], [[]], [0], [1, 1], ["x"], [{}], [0] * 300,
    {}, {"": None}, {"x": {}}, {"0": 1}, {"length": 3},
)
# fmt: on


def edits(steps: list[tuple[int, int]]) -> bytes:
    """(place, value) of each edit as bytes. place is an index into the document, modulo its size; value into
    _HOSTILE.

    Values from 128 on copy a value from elsewhere in the document.
    """
    return bytes([EDITS]) + b"".join(_EDIT.pack(place, value) for place, value in steps)


def edited(document: Document, data: bytes) -> Document:
    """A copy of a document with the edits that are encoded in `data`, which begins with EDITS."""
    result = copy.deepcopy(document)
    usable = len(data[1:]) // _EDIT.size * _EDIT.size
    for place, value in list(_EDIT.iter_unpack(data[1 : 1 + usable]))[:MAX_EDITS]:
        places = list(_places(result))
        if not places:
            break
        container, key = places[place % len(places)]
        if value >= 128:
            other, name = places[(place + value) % len(places)]
            container[key] = copy.deepcopy(other[name])
        elif _HOSTILE[value % len(_HOSTILE)] is _REMOVE:
            del container[key]
        else:
            container[key] = copy.deepcopy(_HOSTILE[value % len(_HOSTILE)])
    return result


def text_of(document: Document, data: bytes, write: Callable[[Any], str]) -> bytes:
    """The bytes of a file: `data` itself, or the edited document, formatted by `write`."""
    return write(edited(document, data)).encode(errors="replace") if data[:1] == bytes([EDITS]) else data


def toml(document: Document) -> str:
    """A document as TOML, as far as TOML can hold it."""
    return "".join(f"{json.dumps(key)} = {_toml_value(value)}\n" for key, value in document.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(each)}" for key, each in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf", "null": '""'}.get(
        text := json.dumps(value), text
    )


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    for key in list(container) if isinstance(container, dict) else range(len(container)):
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


def with_edits(*sound: Callable[[], bytes]) -> Callable[[], list[bytes]]:
    """Seeds: the valid inputs, and the unchanged valid document."""
    return lambda: [edits([]), *(make() for make in sound)]
