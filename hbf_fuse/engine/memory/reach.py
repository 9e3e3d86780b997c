"""Whether a preloaded library reaches a program: the dynamic linker loads it, and a static program has
none.
"""

import os
import shutil
import stat
import struct
from pathlib import Path

_HEADER = struct.Struct("<4sBBB9xHHIQQQIHHH")
_SEGMENT = struct.Struct("<I")
_PT_INTERP = 3
_MOST_SCRIPTS = 4
_BITS_64, _LITTLE_ENDIAN = 2, 1


def why_not(program: str, inject: bool = False, depth: int = 0) -> str:
    """Why a program that is about to run would not be reached, or "". For a script: of its interpreter.

    inject: it will be traced, so that no linker is needed. What the program starts itself is not looked at.
    """
    found = shutil.which(program)
    if found is None:
        return ""
    try:
        with open(found, "rb") as file:
            head = file.read(4096)
            info = os.fstat(file.fileno())
    except OSError:
        return ""  # it may be executed, but not be read
    if head.startswith(b"#!") and depth < _MOST_SCRIPTS:
        words = os.fsdecode(head.partition(b"\n")[0][2:]).split()
        return why_not(words[0], inject, depth + 1) if words else ""
    raised = info.st_mode & (stat.S_ISUID | stat.S_ISGID)
    if raised and not inject and os.geteuid() and info.st_uid != os.geteuid():
        return f"{found} runs with its file's privileges, so the linker ignores $LD_PRELOAD"
    return _of_elf(found, head, inject)


def _of_elf(found: str, head: bytes, inject: bool) -> str:
    if len(head) < _HEADER.size or not head.startswith(b"\x7fELF"):
        return ""
    _, bits, order, _, _, machine, _, _, segments_at, _, _, _, size, count = _HEADER.unpack_from(head)
    if bits != _BITS_64 or order != _LITTLE_ENDIAN or machine != _own_machine():
        return f"{found} is a program of another architecture"
    kinds = [
        _SEGMENT.unpack_from(head, at)[0]
        for at in range(segments_at, segments_at + size * count, max(1, size))
        if at + _SEGMENT.size <= len(head)
    ]
    if _PT_INTERP not in kinds and not inject:
        return f"{found} is a static program: there is no linker that would load a library into it"
    return ""


def _own_machine() -> int:
    head = Path("/proc/self/exe").read_bytes()[: _HEADER.size]
    return int(_HEADER.unpack(head)[5])
