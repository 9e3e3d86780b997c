"""What is what: every command names what a file is if llama.cpp would not load it as a model."""

import json
import subprocess
import sys
from pathlib import Path

import odd
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from hbf_fuse import gguf
from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.doctor import facts
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.tree import Tree
from hbf_fuse.gguf import kinds
from hbf_fuse.gguf.tensor_types import TYPES


def hbf(*arguments: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "hbf_fuse", *map(str, arguments)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in said.stderr, said.stderr
    return said


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    path.write_bytes(odd.FILES[request.param][0])
    return path


def told(path: Path) -> str:
    return odd.FILES[path.name][1]


EVERY = pytest.mark.parametrize("file", odd.FILES, indirect=True)


@EVERY
def test_a_single_source_is_named_as_what_it_is(file):
    assert told(file) in Tree(file, ()).doubt()


@EVERY
def test_doctor_names_it_too(file):
    assert told(file) in facts._source(file).defect


@EVERY
def test_a_benchmark_refuses_what_is_no_model_and_tells_what_is_doubtful(file, capsys):
    try:
        ModelOption(file).weights()
        said = capsys.readouterr().err
    except HbfError as error:
        said = str(error)
    assert told(file).removeprefix("is ") in said


@pytest.mark.parametrize("file", ["mmproj.gguf", "imatrix.gguf", "vocabulary.gguf"], indirect=True)
def test_info_shows_the_kind(file):
    document = json.loads(hbf("model", "info", file, "--json").stdout)
    assert document["kind"] == told(file).removeprefix("is ").partition(",")[0] or document[
        "kind"
    ].startswith("an mmproj")
    assert hbf("model", "info", file).stdout.find("\nkind ") > 0


def test_hbf_mount_says_it_after_its_own_line(tmp_path):
    odd.write(tmp_path, "mmproj.gguf")
    point = tmp_path / "mnt"
    point.mkdir()
    said = hbf("mount", tmp_path / "mmproj.gguf", point)
    try:
        served, remark = [line for line in said.stderr.splitlines() if "mmproj" in line]
        assert "is served at" in served and "is an mmproj, the encoder beside a model" in remark
    finally:
        assert hbf("umount", point).returncode == 0


@pytest.mark.parametrize("name", ["whole.gguf", "two.gguf"])
def test_a_model_gives_no_remark(tmp_path, name):
    (tmp_path / name).write_bytes(odd.WHOLE)
    assert Tree(tmp_path / name, ()).doubt() == "" == facts._source(tmp_path / name).defect


# Folders


def alias(folder: Path) -> str:
    tree = Tree(folder, ())
    return tree.root.children[b"model.gguf"].target.decode()


def test_model_gguf_is_the_largest_model_and_nothing_that_lies_beside_one(tmp_path):
    odd.write(tmp_path)
    (tmp_path / "z-small.gguf").write_bytes(odd.gguf(odd.LLAMA, odd.weights(4)))
    large = odd.gguf({"general.architecture": "clip"}, odd.weights(100))
    (tmp_path / "a-large-mmproj.gguf").write_bytes(large)
    for name in ("cut.gguf", "allocated.gguf", "align8.gguf", "align48.gguf"):
        (tmp_path / name).unlink()  # headers of models
    assert alias(tmp_path) == "z-small.gguf"
    (tmp_path / "larger.gguf").write_bytes(odd.WHOLE)
    assert alias(tmp_path) == "larger.gguf"
    assert "model.gguf is larger.gguf, the largest of 2 models" in Tree(tmp_path, ()).doubt()


def test_a_folder_without_a_model_says_what_it_has(tmp_path):
    odd.write(tmp_path, "mmproj.gguf", "lora.gguf")
    tree = Tree(tmp_path, ())
    assert b"model.gguf" not in tree.root.children
    said = tree.doubt()
    assert "no model that llama.cpp would load" in said and "lora.gguf is an adapter (LoRA)" in said


def test_a_split_model_in_a_folder_has_no_model_gguf(tmp_path):
    for number in (0, 1):
        part = odd.gguf({**odd.LLAMA, "split.no": number, "split.count": 2}, odd.weights(4))
        (tmp_path / f"m-0000{number + 1}-of-00002.gguf").write_bytes(part)
    tree = Tree(tmp_path, ())
    assert b"model.gguf" not in tree.root.children and "no model in one file" in tree.doubt()


def test_names_of_any_kind_stay_on_one_line(tmp_path, mount):
    for name in ("a{}.gguf", "b\nc.gguf", "%s {name!r}.gguf"):
        (tmp_path / "served").mkdir(exist_ok=True)
        (tmp_path / "served" / name).write_bytes(odd.FILES["lora.gguf"][0])
    point = mount(tmp_path / "served")
    assert sorted(path.name for path in point.iterdir()) == ["%s {name!r}.gguf", "a{}.gguf", "b\nc.gguf"]
    assert all(path.read_bytes() == odd.FILES["lora.gguf"][0] for path in point.iterdir())
    said = hbf("doctor", tmp_path / "served", "--json")
    (line,) = [line for line in json.loads(said.stdout)["lines"] if line["name"] == "model"]
    assert "a{}.gguf is an adapter" in line["message"]


# Tensor types


def test_the_table_of_types_is_that_of_the_package():
    known = {kind.value: (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType}
    assert known.items() <= TYPES.items()


@pytest.mark.parametrize(("kind", "nbytes"), [(42, 64), (139, 144), (156, 102), (4, 0), (1000, 64)])
def test_a_tensor_of_an_unknown_type_reaches_to_the_next_one(tmp_path, kind, nbytes):
    path = tmp_path / "odd.gguf"
    path.write_bytes(odd.typed(kind, nbytes))
    first, unknown, last = gguf.read(path).tensors
    assert unknown.type == f"type {kind}" and unknown.nbytes == -(-nbytes // 32) * 32
    assert (first.nbytes, last.nbytes) == (1 << 14, 1 << 14) and kinds.defect(path) == ""
    assert f"type {kind}" in hbf("model", "info", path).stdout


def test_a_mount_begins_without_numpy(tmp_path):
    (tmp_path / "m.gguf").write_bytes(odd.WHOLE)
    code = "import sys; from pathlib import Path; from hbf_fuse.fs.tree import Tree; "
    code += "import hbf_fuse.mount.server; "
    code += "[Tree(Path(name), ()).doubt() for name in sys.argv[1:]]; print('numpy' in sys.modules)"
    line = [sys.executable, "-c", code, str(tmp_path / "m.gguf"), str(tmp_path)]
    assert subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout == "False\n"
