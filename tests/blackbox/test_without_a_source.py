"""Without SOURCE: $HBF_MODEL, then config.toml, then a synthetic model that is made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import Box, digest, names, write_bytes

pytestmark = pytest.mark.usefixtures("fuse")


def configure(box: Box, text: str) -> Path:
    file = box.folder / "config" / "hbf" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_the_synthetic_model_is_made_once_and_announced(box: Box, tiny: Path) -> None:
    point = box.mountpoint()
    first = box.run("hbf-mount", point).succeeds()
    assert "synthetic" in first.err + first.out
    (made,) = [path for path in (box.cache / "hbf").iterdir() if path.suffix == ".gguf"]
    assert digest(point / "model.gguf") == digest(made) == digest(tiny)
    box.run("hbf-umount", point).succeeds()
    before = made.stat()
    second = box.run("hbf-mount", point).succeeds()
    assert "synthetic" in second.err + second.out
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    box.run("hbf-umount", point).succeeds()
    assert names(box.cache / "hbf") == [made.name]
    box.assert_clean()


def test_hbf_model_comes_before_config_and_source_before_both(box: Box, source: Path) -> None:
    by_env = write_bytes(box.work / "env.gguf", 11)
    by_config = write_bytes(box.work / "config.gguf", 22)
    configure(box, f'model = "{by_config}"\n')
    point = box.mount()
    assert (point / "model.gguf").stat().st_size == 22
    box.run("hbf-umount", point).succeeds()
    box.mount(HBF_MODEL=str(by_env))
    assert (point / "model.gguf").stat().st_size == 11
    box.run("hbf-umount", point).succeeds()
    box.mount(source, HBF_MODEL=str(by_env))
    assert (point / "model.gguf").stat().st_size == source.stat().st_size
    assert not (box.cache / "hbf").exists()


def test_a_missing_hbf_model_is_named(box: Box) -> None:
    box.run("hbf-mount", box.mountpoint(), HBF_MODEL="nosuch.gguf").fails("nosuch.gguf", "$HBF_MODEL")
    box.assert_clean()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('modle = "a.gguf"\n', ("unknown key", "modle", "model")),
        ("model = [\n", ()),
        ("model = 3\n", ("model",)),
        ('model = "nosuch.gguf"\n', ("nosuch.gguf",)),
        ("\x00\xff", ()),
    ],
    ids=["unknown key", "malformed", "a number", "a missing file", "binary"],
)
def test_a_faulty_config_is_named_with_its_path(box: Box, text: str, words: tuple[str, ...]) -> None:
    file = configure(box, text)
    box.run("hbf-mount", box.mountpoint()).fails(str(file), *words)
    box.assert_clean()
