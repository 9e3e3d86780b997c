"""The protocol's structs, compared with linux/fuse.h as the C compiler reads it."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from hbf_fuse.engine.kernel import abi

LAYOUTS = [value for value in vars(abi).values() if isinstance(value, abi.WireStruct)]
OURS = {
    "MINOR": "the newest minor that we speak, not that of the header",
    "OLDEST_MINOR": "the oldest minor that we speak",
}
"""Numbers that no header has, with the reason."""

RENAMED = {"MAJOR": "FUSE_KERNEL_VERSION"}
"""Names for which the header's name is not FUSE_ plus ours."""

CONSTANTS = {
    name: RENAMED.get(name, name if name.startswith(("FOPEN_", "FATTR_")) else f"FUSE_{name}")
    for name, value in vars(abi).items()
    if name.isupper() and type(value) is int and name not in OURS
}
"""Every number on the wire, with the header's name for it."""


@pytest.fixture(scope="module")
def header_facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    if not shutil.which("cc") or not Path("/usr/include/linux/fuse.h").exists():
        pytest.skip("needs a C compiler and linux/fuse.h (linux-libc-dev)")
    folder = tmp_path_factory.mktemp("abi")
    lines = []
    for layout in LAYOUTS:
        lines.append(f'printf("{layout.name} %zu\\n", sizeof(struct {layout.name}));')
        lines += [
            f'printf("{layout.name}.{field} %zu\\n", offsetof(struct {layout.name}, {field}));'
            for field, _ in layout.fields
        ]
    lines += [f'printf("{code.name} %d\\n", FUSE_{code.name});' for code in abi.Opcode]
    lines += [f'printf("{name} %d\\n", {theirs});' for name, theirs in CONSTANTS.items()]
    source = folder / "facts.c"
    body = "\n".join(lines)
    source.write_text(
        f"#include <stdio.h>\n#include <stddef.h>\n#include <linux/fuse.h>\nint main(void) {{\n{body}\n}}\n"
    )
    subprocess.run(["cc", "-o", str(folder / "facts"), str(source)], check=True)
    printed = subprocess.run([str(folder / "facts")], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_sizes_and_offsets_are_the_kernels(layout, header_facts):
    offset = 0
    for field, code in layout.fields:
        assert header_facts[f"{layout.name}.{field}"] == offset, field
        offset += struct.calcsize("=" + code)
    tail = abi.ATTR.size if layout in abi.HEADERS_WITH_ATTR else 0
    # INIT_IN has grown since 7.36: only its old beginning is read.
    whole = 16 if layout is abi.INIT_IN else header_facts[layout.name]
    assert layout.size + tail == whole


def test_numbers_are_the_kernels(header_facts):
    for code in abi.Opcode:
        assert header_facts[code.name] == code
    assert {"ASYNC_DIO", "FOPEN_NOFLUSH", "READ_LOCKOWNER", "NOTIFY_INVAL_INODE"} <= set(CONSTANTS)
    for name in CONSTANTS:
        assert header_facts[name] == getattr(abi, name), name
