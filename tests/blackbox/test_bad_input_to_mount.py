"""Bad input to hbf-mount and hbf-umount: one line that says what to do, and nothing left behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from sandbox import BIN, Box


@pytest.fixture(autouse=True)
def nothing_is_left(box: Box, fuse: None) -> object:
    yield
    box.assert_clean()


def test_missing_source_says_what_to_do(box: Box) -> None:
    box.run("hbf-mount", "nosuch.gguf", box.mountpoint()).fails("nosuch.gguf", "hbf model make")


def test_unreadable_source_says_what_to_do(box: Box, source: Path) -> None:
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root reads everything, and there is no setpriv to be somebody else")
        prefix = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        for folder in [box.folder, *box.folder.parents]:
            if folder.stat().st_mode & 0o055 != 0o055:
                folder.chmod(0o755)
        if box.run("hbf", "--version", prefix=prefix).code != 0:
            pytest.skip("user 65534 cannot run this interpreter")
    point = box.mountpoint()
    if prefix:
        os.chown(point, 65534, 65534)
    source.chmod(0)
    box.run("hbf-mount", source, point, prefix=prefix).fails(str(source), "read")


def test_empty_directory_as_source_says_what_to_do(box: Box) -> None:
    (box.work / "empty").mkdir()
    box.run("hbf-mount", "empty", box.mountpoint()).fails("empty", "hbf model make")


def test_missing_mountpoint_says_how_to_make_it(box: Box, source: Path) -> None:
    missing = box.folder / "missing"
    box.run("hbf-mount", source, missing).fails("does not exist", f"mkdir -p {missing}")
    assert not missing.exists()


def test_a_file_as_mountpoint_is_refused_with_advice_that_works(box: Box, source: Path) -> None:
    file = box.work / "file"
    file.write_text("mine")
    line = box.run("hbf-mount", source, file).fails(str(file), "not a directory")
    assert f"mkdir -p {file}" not in line, "mkdir -p on a file that exists fails"
    assert file.read_text() == "mine"


def test_a_mountpoint_that_is_not_empty_is_refused(box: Box, source: Path) -> None:
    point = box.mountpoint()
    (point / "mine").write_text("mine")
    box.run("hbf-mount", source, point).fails(str(point), "not empty")
    assert (point / "mine").read_text() == "mine"


def test_a_second_mount_on_a_mountpoint_is_refused_and_the_first_stays(box: Box, source: Path) -> None:
    point = box.mount(source)
    box.run("hbf-mount", source, point).fails("mounted already", "hbf-umount")
    assert (point / "model.gguf").stat().st_size == source.stat().st_size
    box.run("hbf-umount", point).succeeds()


@pytest.mark.parametrize("value", ["-1", "nan", "0", "inf"])
def test_an_impossible_bandwidth_is_refused(box: Box, source: Path, value: str) -> None:
    box.run("hbf-mount", source, box.mountpoint(), f"--mbps={value}").fails("--mbps")


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
def test_an_impossible_latency_is_refused(box: Box, source: Path, value: str) -> None:
    box.run("hbf-mount", source, box.mountpoint(), f"--lat={value}").fails("--lat")


@pytest.mark.parametrize("option", ["--mbps", "--lat", "--readahead"])
def test_a_text_in_place_of_a_number_is_wrong_usage(box: Box, source: Path, option: str) -> None:
    box.run("hbf-mount", source, box.mountpoint(), option, "fast").is_wrong_usage(option)


def test_an_unknown_engine_is_refused_with_the_known_ones(box: Box, source: Path) -> None:
    result = box.run("hbf-mount", source, box.mountpoint(), "--engine", "steam")
    result.is_wrong_usage("kernel", "fusepy")


@pytest.mark.parametrize("args", [(), ("a", "b", "c"), ("a", "--no-such-option")])
def test_wrong_arguments_are_wrong_usage(box: Box, args: tuple[str, ...]) -> None:
    box.run("hbf-mount", *args).is_wrong_usage("Usage")


@pytest.mark.parametrize("what", ["missing", "an empty directory", "a file"])
def test_umount_of_what_is_not_mounted_says_so(box: Box, what: str) -> None:
    point = box.folder / "point"
    if what == "an empty directory":
        point.mkdir()
    elif what == "a file":
        point.write_text("mine")
    for options in ([], ["--force"]):
        box.run("hbf-umount", point, *options).fails(str(point), "hbf status")


def test_umount_leaves_mounts_of_others_alone(box: Box) -> None:
    box.run("hbf-umount", "--force", "/proc").fails("/proc")
    assert Path("/proc/self").exists()


def test_a_foreground_mount_fails_with_one_line_too(box: Box) -> None:
    assert (BIN / "hbf-mount").exists()
    box.run("hbf-mount", "-f", "nosuch.gguf", box.mountpoint()).fails("nosuch.gguf")
