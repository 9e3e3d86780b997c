"""Errors of the system name the file: on a disk that is full, read-only, or fails."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from namespace import entered

from hbf_fuse import documents
from hbf_fuse.errors import HbfError, naming, of_system
from hbf_fuse.folder import Folder
from hbf_fuse.host import linux

HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
FULL = os.strerror(errno.ENOSPC)


@pytest.fixture(scope="module")
def full():
    """A namespace in which /full is a tmpfs without room, and `tiny.gguf` a model."""
    with entered() as namespace:
        made = namespace.hbf("model", "make", "tiny", "-o", namespace.work / "tiny.gguf")
        assert made.returncode == 0, made
        namespace.sh(
            f"mkdir {namespace.folder}/full; "
            f"mount -t tmpfs -o size=64k,mode=777 full {namespace.folder}/full;"
            f"cp -r {namespace.work}/tiny.gguf {namespace.folder}/model.gguf;"
            f"dd if=/dev/zero of={namespace.folder}/full/filler bs=4k 2>/dev/null || true",
            uid=0,
        )
        yield namespace


WRITES = {
    "model make": ("model", "make", "tiny", "-o", "FULL/new.gguf"),
    "csv": ("kv", "sim", "-m", "MODEL", "--mbps", "500", "--context", "1000", "-o", "FULL/new.csv"),
    "svg": ("kv", "sim", "-m", "MODEL", "--mbps", "500", "--context", "1000", "--svg", "FULL/new.svg"),
    "trace": ("mount", "--trace", "FULL/new.trace", "MODEL", "WORK/mnt"),
    "cache": ("mount", "WORK/mnt"),
    "temporary": ("mount", "MODEL", "WORK/mnt"),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_does_not_fit_is_named(full, what):
    full.sh("mkdir -p mnt")
    there = full.folder / "full"
    words = (
        word.replace("FULL", str(there)).replace("MODEL", str(full.folder / "model.gguf"))
        for word in WRITES[what]
    )
    extra = {"cache": {"XDG_CACHE_HOME": str(there)}, "temporary": {"TMPDIR": str(there)}}.get(what, {})
    said = full.hbf(*(word.replace("WORK", str(full.work)) for word in words), **extra)
    if what == "temporary" and said.returncode == 0:  # another directory for temporary files was taken
        assert full.hbf("umount", full.work / "mnt").returncode == 0
        return
    assert said.returncode == 1 and FULL in said.stderr, said
    assert str(there) in said.stderr and "input or output" not in said.stderr, said
    # No half file stays behind.
    assert set(full.sh(f"ls -A {there}").split()) <= {"filler", "hbf", "new.trace"}


def test_a_full_standard_output_is_named():
    for words in (["profile", "list"], ["--help"], ["status", "--json"], ["model", "make", "list"]):
        with Path("/dev/full").open("w") as out:
            said = subprocess.run(
                [*HBF, *words], stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False
            )
        assert said.returncode == 1 and f"standard output: {FULL}" in said.stderr, said
        assert said.stderr.count("\n") == 1


def test_whatever_fails_in_a_folder_names_the_file(tmp_path, monkeypatch):
    folder = Folder.at(tmp_path)

    def fail(*_args, **_options):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call in ("fsync", "rename"):
        with monkeypatch.context() as changed:
            changed.setattr(os, call, fail)
            with pytest.raises(OSError, match="Input/output") as caught:
                folder.write("x.json", "{}")
            assert caught.value.filename == str(tmp_path / "x.json")
            with pytest.raises(HbfError, match=f"cannot write {tmp_path}/x.json: Input/output"):
                documents.write_in(folder, "x.json", "{}")
        assert not list(tmp_path.iterdir())
    (tmp_path / "y.json").write_text(json.dumps({}))
    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        documents.read_json(tmp_path / "y.json")
    assert caught.value.filename == str(tmp_path / "y.json")
    for lookup in (folder.existing, folder.is_file, lambda name: folder.read(name, 5)):
        with pytest.raises(OSError, match="No such file") as caught:
            lookup("none")
        assert caught.value.filename == str(tmp_path / "none")


def test_an_error_keeps_the_path_that_it_has():
    with pytest.raises(OSError, match="No such") as caught, naming("/a/b"):
        Path("/none/at/all").stat()
    assert caught.value.filename == "/none/at/all"
    with pytest.raises(OSError, match="Bad file") as caught, naming("/a/b"):
        os.fstat(999_999)
    assert caught.value.filename == "/a/b" and "cannot use /a/b: Bad file" in str(of_system(caught.value))
    assert "current directory" in str(of_system(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))))
    assert "No usable" in str(of_system(FileNotFoundError(errno.ENOENT, "No usable temporary directory")))
    assert linux.sysinfo().totalram
