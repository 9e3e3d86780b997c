"""docs/troubleshooting.md has every error message that the program can print."""

import subprocess
import sys

import pytest
from generated import troubleshooting

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.sweep import conditions
from hbf_fuse.tier import TierSpec


def test_every_error_has_its_row_and_every_row_its_error():
    """Fails after a change of a message: run tools/pages, and explain new messages in the last column."""
    assert troubleshooting.PAGE.read_text() == troubleshooting.page()
    assert troubleshooting.UNEXPLAINED not in troubleshooting.page()


def test_the_messages_are_found():
    assert len({message.key for message in troubleshooting.messages()}) > 120


def test_a_new_message_comes_to_the_page_and_a_gone_one_leaves_it(tmp_path, monkeypatch):
    lines = troubleshooting.PAGE.read_text().splitlines()
    gone = next(line for line in lines if line.startswith("| mountpoint ... is not empty"))
    page = tmp_path / "page.md"
    page.write_text(
        "\n".join([*(line for line in lines if line != gone), "| nobody says this | x | y |", ""])
    )
    monkeypatch.setattr(troubleshooting, "PAGE", page)
    made = troubleshooting.page()
    assert "nobody says this" not in made
    assert "mountpoint ... is not empty" in made.partition(troubleshooting.UNEXPLAINED)[2]


def test_a_row_gets_a_changed_remedy_and_keeps_its_reason(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("| mountpoint ... is not empty | use another one | It has files. |\n")
    monkeypatch.setattr(troubleshooting, "PAGE", page)
    made = troubleshooting.page()
    assert made.startswith("| mountpoint ... is not empty | use an empty directory | It has files. |\n")


def test_every_row_says_why():
    rows = [line for line in troubleshooting.PAGE.read_text().splitlines() if line.startswith("| ")]
    short = [row for row in rows if len(row.rpartition(" | ")[2]) < len("Spelling. |")]
    assert all(row in troubleshooting.HEAD for row in short), short


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


def test_an_error_about_unwritable_results_does_not_mention_cells(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HbfError) as caught:
        documents.write_whole(tmp_path / "file/report.md", "")
    assert "cannot write" in str(caught.value) and "cells" not in str(caught.value)
