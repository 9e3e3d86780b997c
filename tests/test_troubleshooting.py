"""docs/troubleshooting.md has every error line that the program can print."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hbf_fuse
from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.sweep import conditions
from hbf_fuse.tier import TierSpec

PACKAGE = Path(hbf_fuse.__file__).parent
PAGE = PACKAGE.parent / "docs/troubleshooting.md"
SHORTEST = 8
"""Of a message's constant part: what has less passes on the words of another."""

OURS = {"BadParameter"} | {
    found
    for path in PACKAGE.rglob("*.py")
    for found in re.findall(r"^class (\w+)\(HbfError\)", path.read_text(), re.MULTILINE)
}
SILENT = {"OSError", "FuseOSError", "RuntimeError"}
"""Errors for programs: an errno, not a line."""


def raised() -> Iterator[tuple[str, str, str]]:
    """Every message: where it is made, its longest constant part, and the whole with ... for what varies."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and call.args and _is_error(call.func):
                for text in _texts(call.args[0]):
                    yield (
                        f"{path.relative_to(PACKAGE.parent)}:{call.lineno}",
                        max(text, key=len),
                        "...".join(text),
                    )


def _is_error(function: ast.expr) -> bool:
    name = getattr(function, "id", "") or getattr(function, "attr", "")
    return name in OURS or (name.endswith("Error") and name not in SILENT)


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


def plain(text: str) -> str:
    """A text without what Markdown adds."""
    return re.sub(r"\s+", " ", text.replace("`", "").replace("\\|", "|"))


def test_every_error_line_has_its_entry():
    page = plain(PAGE.read_text())
    missing = {
        whole: where
        for where, key, whole in raised()
        if len(key.strip()) >= SHORTEST and plain(key.strip()) not in page
    }
    paste = [f"| {whole} | <why, and what to do> |" for whole in sorted(missing)]
    assert not missing, (
        f"{PAGE.name} lacks what {sorted(set(missing.values()))} can say; paste and complete:\n"
        + "\n".join(paste)
    )


def test_the_messages_are_found():
    assert len({key for _, key, _ in raised()}) > 120


def rows() -> list[list[str]]:
    """The tables of the page, without their heads."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("message", "---")]


def test_the_page_has_no_entry_for_a_line_that_is_gone():
    keys = [plain(key.strip()) for _, key, _ in raised() if len(key.strip()) >= SHORTEST]
    wholes = {plain(whole) for _, _, whole in raised()}
    entries = [plain(row[0]) for row in rows()]
    assert [entry for entry in entries if entry not in wholes and not any(key in entry for key in keys)] == []


def test_every_entry_says_why_or_what_to_do():
    assert [row for row in rows() if len(row) != 2 or len(row[1]) < len("Spelling.")] == []


@pytest.mark.parametrize("background", [True, False])
def test_a_trace_that_cannot_be_written_names_the_option(noise, tmp_path, background):
    point = tmp_path / "mnt"
    point.mkdir()
    trace = tmp_path / "nowhere/trace"
    source = noise(1000)
    if background:
        line = [sys.executable, "-m", "hbf_fuse", "mount", "--trace", str(trace), str(source), str(point)]
        said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
        assert said.returncode == 1
        told = said.stderr
    else:
        config = MountConfig(source, point, TierSpec(), trace=trace)
        with pytest.raises(HbfError) as caught, child.mounted(config):
            pass
        told = str(caught.value)
    assert "No such file" in told and "--trace" in told and "Error:" not in told
    assert not point.is_mount()


def test_a_model_larger_than_memory_is_refused_only_where_it_is_copied():
    with pytest.raises(HbfError, match="mode mmap"):
        conditions.judge(1 << 60, copied=True)
    assert "memory" in [concern.name for concern in conditions.judge(1 << 60, copied=False)]


def test_results_that_cannot_be_written_promise_nothing_of_a_sweep(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HbfError) as caught:
        documents.write_whole(tmp_path / "file/report.md", "")
    assert "cannot write" in str(caught.value) and "cells" not in str(caught.value)
