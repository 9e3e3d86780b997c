"""Names, attributes and refusals: the content of a mount, and that it cannot be changed."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from sandbox import ENGINES, Box, digest, names, write_bytes

pytestmark = pytest.mark.usefixtures("fuse")

READ_ONLY = {errno.EROFS} if os.geteuid() == 0 else {errno.EROFS, errno.EACCES, errno.EPERM}
NO_XATTR = {errno.ENOTSUP, errno.EOPNOTSUPP}

WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda m: os.open(m / "model.gguf", os.O_WRONLY),
    "open for both": lambda m: os.open(m / "model.gguf", os.O_RDWR),
    "open for appending": lambda m: os.open(m / "model.gguf", os.O_WRONLY | os.O_APPEND),
    "open and truncate": lambda m: os.open(m / "model.gguf", os.O_RDONLY | os.O_TRUNC),
    "open under its own name": lambda m: os.open(m / "weights.gguf", os.O_WRONLY),
    "open spec.json": lambda m: os.open(m / ".hbf" / "spec.json", os.O_WRONLY),
    "create": lambda m: os.open(m / "new", os.O_WRONLY | os.O_CREAT),
    "create exclusively": lambda m: os.open(m / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "create in .hbf": lambda m: os.open(m / ".hbf" / "new", os.O_WRONLY | os.O_CREAT),
    "mkdir": lambda m: (m / "new").mkdir(),
    "mkfifo": lambda m: os.mkfifo(m / "new"),
    "symlink": lambda m: (m / "new").symlink_to("model.gguf"),
    "link": lambda m: os.link(m / "model.gguf", m / "new"),
    "unlink": lambda m: (m / "model.gguf").unlink(),
    "unlink the symlink": lambda m: (m / "weights.gguf").unlink(),
    "rename": lambda m: (m / "model.gguf").rename(m / "new"),
    "rename over": lambda m: (m / "model.gguf").replace(m / "weights.gguf"),
    "chmod": lambda m: (m / "model.gguf").chmod(0o777),
    "chmod the root": lambda m: m.chmod(0o777),
    "chown": lambda m: os.chown(m / "model.gguf", os.getuid(), os.getgid()),
    "truncate": lambda m: os.truncate(m / "model.gguf", 0),
    "utime": lambda m: os.utime(m / "model.gguf", (1, 1)),
}


def errno_of(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("engine", ENGINES)
def test_every_write_is_refused_as_read_only(box: Box, source: Path, engine: str) -> None:
    before = digest(source)
    point = box.mount("--engine", engine, source)
    answers = {what: errno_of(partial(act, point)) for what, act in WRITES.items()}
    wrong = {what: errno.errorcode.get(code, code) for what, code in answers.items() if code not in READ_ONLY}
    assert wrong == {}
    assert names(point) == ["model.gguf", "weights.gguf"]
    assert digest(source) == before == digest(point / "model.gguf")


@pytest.mark.parametrize("engine", ENGINES)
def test_extended_attributes_are_refused_cleanly(box: Box, source: Path, engine: str) -> None:
    file = box.mount("--engine", engine, source) / "model.gguf"
    assert errno_of(lambda: os.getxattr(file, "user.a")) in NO_XATTR
    assert errno_of(lambda: os.listxattr(file)) in NO_XATTR
    assert errno_of(lambda: os.setxattr(file, "user.a", b"1")) in NO_XATTR | READ_ONLY
    assert errno_of(lambda: os.removexattr(file, "user.a")) in NO_XATTR | READ_ONLY


def test_a_file_is_served_as_model_gguf_and_under_its_name(box: Box, source: Path) -> None:
    point = box.mount(source)
    assert names(point) == ["model.gguf", "weights.gguf"]
    assert str((point / "weights.gguf").readlink()) == "model.gguf"
    assert not (point / "model.gguf").is_symlink()


def test_a_file_named_model_gguf_is_listed_once(box: Box) -> None:
    source = write_bytes(box.work / "model.gguf", 777)
    point = box.mount(source)
    assert names(point) == ["model.gguf"]
    assert digest(point / "model.gguf") == digest(source)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_directory_is_served_as_it_is_plus_model_gguf(box: Box, tiny: Path, engine: str) -> None:
    folder = box.work / "models"
    (folder / "deeper").mkdir(parents=True)
    os.link(tiny, folder / "b.gguf")
    write_bytes(folder / "notes.txt", 4097)
    write_bytes(folder / ".hidden", 3)
    write_bytes(folder / "deeper" / "part.bin", 70_001)
    point = box.mount("--engine", engine, folder)
    assert names(point) == [".hidden", "b.gguf", "deeper", "model.gguf", "notes.txt"]
    assert names(point / "deeper") == ["part.bin"]
    assert digest(point / "deeper" / "part.bin") == digest(folder / "deeper" / "part.bin")
    assert (point / "model.gguf").resolve() == point / "b.gguf"
    assert digest(point / "model.gguf") == digest(tiny)


def test_a_directory_s_own_model_gguf_stays(box: Box) -> None:
    folder = box.work / "models"
    folder.mkdir()
    write_bytes(folder / "a.gguf", 10)
    own = write_bytes(folder / "model.gguf", 20)
    point = box.mount(folder)
    assert names(point) == ["a.gguf", "model.gguf"]
    assert digest(point / "model.gguf") == digest(own)


def test_a_directory_of_many_files_is_listed_completely(box: Box) -> None:
    folder = box.work / "models"
    folder.mkdir()
    wanted = sorted(f"part-with-a-rather-long-name-{number:04}.bin" for number in range(1500))
    for name in wanted:
        (folder / name).write_bytes(b"")
    point = box.mount(folder)
    assert names(point) == wanted


@pytest.mark.parametrize("engine", ENGINES)
def test_inodes_and_times_are_stable_and_the_source_s_times(box: Box, source: Path, engine: str) -> None:
    os.utime(source, (1_600_000_000, 1_500_000_000))
    point = box.mount("--engine", engine, source)
    file = point / "model.gguf"

    def seen() -> tuple[object, ...]:
        stats = [path.lstat() for path in (point, file, point / "weights.gguf")]
        return tuple((s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)

    first = seen()
    file.read_bytes()
    elsewhere = box.run("python", "-I", "-c", f"import os; print(os.stat({str(file)!r}).st_ino)")
    assert seen() == first
    assert int(elsewhere.out) == file.stat().st_ino
    assert len({path.lstat().st_ino for path in (point, file, point / "weights.gguf")}) == 3
    assert file.stat().st_mtime == 1_500_000_000
    box.run("hbf-umount", point).succeeds()
    box.mount("--engine", engine, source)
    assert file.stat().st_mtime == 1_500_000_000


def test_the_kernel_engine_lists_the_inodes_of_stat(box: Box, source: Path) -> None:
    point = box.mount(source)
    listed = {entry.name: entry.inode() for entry in os.scandir(point)}
    assert listed == {name: (point / name).lstat().st_ino for name in ("model.gguf", "weights.gguf")}


def test_statvfs_shows_the_size_as_used_and_no_full_disk(box: Box, source: Path) -> None:
    answer = os.statvfs(box.mount(source))
    used = (answer.f_blocks - answer.f_bfree) * answer.f_frsize
    assert source.stat().st_size <= used < source.stat().st_size + answer.f_frsize * 2
    assert answer.f_bavail > answer.f_blocks / 2 and answer.f_favail > answer.f_files / 2
    assert answer.f_namemax >= 255


@pytest.mark.parametrize("engine", ENGINES)
def test_hbf_folder_is_not_listed_but_has_spec_and_stats(box: Box, source: Path, engine: str) -> None:
    point = box.mount("--mbps", 500, "--lat", 1, "--engine", engine, source)
    assert ".hbf" not in names(point)
    spec = json.loads((point / ".hbf" / "spec.json").read_text())
    assert (spec["tier"]["bandwidth_mbps"], spec["tier"]["latency_ms"]) == (500.0, 1.0)
    assert Path(spec["source"]) == source
    assert spec["engine"] == engine
    before = json.loads((point / ".hbf" / "stats.json").read_text())
    (point / "model.gguf").read_bytes()
    after = json.loads((point / ".hbf" / "stats.json").read_text())
    assert before["bytes_read"] == 0
    assert after["bytes_read"] >= source.stat().st_size
    assert after["reads"] > 0
    assert after["failed"] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_missing_names_and_wrong_kinds_give_the_usual_errors(box: Box, source: Path, engine: str) -> None:
    point = box.mount("--engine", engine, source)
    assert errno_of((point / "nothing").stat) == errno.ENOENT
    assert errno_of(lambda: names(point / "model.gguf")) == errno.ENOTDIR
    assert errno_of((point / "model.gguf" / "x").stat) == errno.ENOTDIR
    assert errno_of((point / "model.gguf").readlink) == errno.EINVAL


def test_a_reader_may_map_the_file_privately_and_write_to_its_copy(box: Box, source: Path) -> None:
    file = box.mount(source) / "model.gguf"
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[0:4] = b"mine"
        assert view[0:4] == b"mine"
    assert digest(file) == digest(source)
