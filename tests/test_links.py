"""Links lead through the tier: what they lead to is served under their names, or left out and told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import odd
import pytest
from namespace import STRANGER, USER, entered

from hbf_fuse.cli.bench import ModelOption
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.links import KEEP
from hbf_fuse.fs.tree import Tree
from hbf_fuse.gguf import cursor
from hbf_fuse.models import choice, split
from hbf_fuse.mount import client
from hbf_fuse.sweep.cell import ModelFile

REPO = "org/some-model-GGUF"
DIGEST = "sha256:" + "ab" * 32


def hbf(*arguments: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "hbf_fuse", *map(str, arguments)]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in said.stderr, said.stderr
    return said


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own for every cache."""
    path: Path = tmp_path / "home"
    path.mkdir()
    for name in ("LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(path))
    return path


def hub(folder: Path, files: dict[str, bytes], repo: str = REPO) -> Path:
    """A repository in a cache of huggingface_hub; returns its snapshot."""
    root = folder / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots/0123abc"
    for path in (root / "refs", root / "blobs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text("0123abc")
    for number, (name, content) in enumerate(files.items()):
        blob = root / f"blobs/{number:064x}"
        blob.write_bytes(content)
        (snapshot / name).parent.mkdir(exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    return snapshot


def names(tree: Tree) -> set[str]:
    return {os.fsdecode(name) for name in tree.root.children} - {".hbf"}


# Folders


def test_a_snapshot_of_hugging_face_comes_from_the_tier_under_its_names(tmp_path, mount):
    mmproj = odd.FILES["mmproj.gguf"][0]
    snapshot = hub(tmp_path, {"model-Q4_0.gguf": odd.WHOLE, "a-mmproj.gguf": mmproj, "sub/b.gguf": odd.WHOLE})
    point = mount(snapshot, mbps=500)
    seen = point / "model-Q4_0.gguf"
    assert not seen.is_symlink() and seen.read_bytes() == odd.WHOLE
    assert (point / "sub/b.gguf").read_bytes() == odd.WHOLE
    assert (point / "model.gguf").resolve() == seen
    assert client.read_stats(point)["bytes_read"] >= 2 * len(odd.WHOLE)


def test_a_whole_repository_keeps_its_links_because_they_stay_inside(tmp_path, mount):
    snapshot = hub(tmp_path, {"m.gguf": odd.WHOLE})
    point = mount(snapshot.parent.parent)
    link = point / "snapshots/0123abc/m.gguf"
    assert link.is_symlink() and link.read_bytes() == odd.WHOLE
    assert link.resolve().parent == point / "blobs"


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with links of every kind."""
    folder, outside = tmp_path / "served", tmp_path / "outside"
    (folder / "sub").mkdir(parents=True)
    outside.mkdir()
    (outside / "real.gguf").write_bytes(odd.WHOLE)
    (outside / "hop.gguf").symlink_to("real.gguf")
    (folder / "own.gguf").write_bytes(odd.WHOLE)
    os.mkfifo(folder / "pipe")
    for name, target in LINKS.items():
        (folder / name).symlink_to(target.replace("@", str(tmp_path)))
    return folder


LINKS = {
    "relative.gguf": "../outside/real.gguf",
    "absolute.gguf": "@/outside/real.gguf",
    "hops.gguf": "../outside/hop.gguf",
    "chain.gguf": "relative.gguf",
    "around.gguf": "../served/own.gguf",
    "absolute-own.gguf": "@/served/own.gguf",
    "inside.gguf": "own.gguf",
    "sub/up.gguf": "../own.gguf",
    "folder": "sub",
    "through.gguf": "folder/up.gguf",
    "directory": "../outside",
    "itself": "itself",
    "one": "two",
    "two": "one",
    "dangling": "nothing",
    "beyond.gguf": "own.gguf/x",
    "to-pipe": "pipe",
    "to-device": "/dev/zero",
    "to-proc": "/proc/version",
}
FILES = ("relative.gguf", "absolute.gguf", "hops.gguf", "chain.gguf", "around.gguf", "absolute-own.gguf")
KEPT = ("inside.gguf", "sub/up.gguf", "folder", "through.gguf")
LOST = ("directory", "itself", "one", "two", "dangling", "beyond.gguf", "to-pipe", "to-device", "to-proc")


def test_links_of_every_kind(linked, mount):
    point = mount(linked)
    for name in FILES:
        assert not (point / name).is_symlink() and (point / name).read_bytes() == odd.WHOLE, name
    for name in KEPT:
        assert (point / name).is_symlink() and (point / name).resolve().is_relative_to(point), name
    assert (point / "through.gguf").read_bytes() == odd.WHOLE
    assert not {path.name for path in point.iterdir()} & set(LOST)
    inodes = [path.lstat().st_ino for path in point.rglob("*")]
    assert len(set(inodes)) == len(inodes)


def test_what_is_left_out_is_told_with_the_count(linked, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    said = hbf("mount", linked, point)
    assert hbf("umount", point).returncode == 0
    (line,) = [line for line in said.stderr.splitlines() if "left out" in line]
    assert "9 links are left out" in line and "3 lead in a circle (itself, one, ...)" in line
    assert "1 leads to a directory (directory)" in line and "2 lead to nothing" in line
    assert "2 lead to a pipe, a socket or a device" in line


def test_links_may_be_kept_with_a_warning(linked, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    said = hbf("mount", "--links", "keep", linked, point)
    try:
        assert all((point / name).is_symlink() for name in LINKS)
        (line,) = [line for line in said.stderr.splitlines() if "does not come from the tier" in line]
        assert f"{len(FILES) + len(LOST)} links lead outside" in line
    finally:
        assert hbf("umount", point).returncode == 0
    assert hbf("mount", "--links", "cut", linked, point).returncode == 2


def test_a_folder_of_lost_links_alone_is_refused(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served/a.gguf").symlink_to("nothing")
    with pytest.raises(HbfError, match="nothing that can be served: 1 link is left out: 1 leads to nothing"):
        Tree(tmp_path / "served", ())
    assert names(Tree(tmp_path / "served", (), way=KEEP)) == {"a.gguf"}


def test_a_linked_file_that_is_replaced_is_stale_and_the_link_is_not_asked_again(linked, tmp_path):
    tree = Tree(linked, ())
    node = tree.root.children[b"absolute.gguf"]
    (linked / "absolute.gguf").unlink()
    (linked / "absolute.gguf").symlink_to("/dev/zero")
    os.close(tree.open(node))
    (tmp_path / "outside/real.gguf").unlink()
    (tmp_path / "outside/real.gguf").symlink_to(linked / "own.gguf")
    with pytest.raises(OSError):
        tree.open(node)


# One file


def test_a_single_link_keeps_its_name_in_the_mount_and_in_results(tmp_path, mount):
    file = hub(tmp_path, {"model-Q4_0.gguf": odd.WHOLE}) / "model-Q4_0.gguf"
    found = choice.file_of(file)
    assert found == file and ModelFile.of(found).path.name == "model-Q4_0.gguf"
    point = mount(found)
    assert sorted(path.name for path in point.iterdir()) == ["model-Q4_0.gguf", "model.gguf"]
    assert (point / "model.gguf").read_bytes() == odd.WHOLE and not (point / "model.gguf").is_symlink()
    assert client.read_spec(point)["source"] == str(file)


def test_the_parts_of_a_split_model_may_be_links(tmp_path, mount):
    files = {}
    for number in (0, 1):
        told = {"split.no": number, "split.count": 2, "split.tensors.count": 8}
        tensors = dict(list(odd.weights(8).items())[4 * number : 4 * number + 4])
        files[f"m-0000{number + 1}-of-00002.gguf"] = odd.gguf({**odd.LLAMA, **told}, tensors)
    snapshot = hub(tmp_path, files)
    first = (
        choice.file_of(Path(f"hf:{REPO}")) if hub(tmp_path / "home/.cache/huggingface/hub", files) else None
    )
    assert first and len(split.parts_of(first)) == 2 and len(split.read_model(first).tensors) == 8
    point = mount(snapshot / "m-00002-of-00002.gguf")
    assert {path.name: path.read_bytes() for path in point.iterdir()} == files


def test_a_single_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "a.gguf").symlink_to("nothing")
    with pytest.raises(HbfError, match="does not exist"):
        choice.file_of(tmp_path / "a.gguf")


# Names of other tools


@pytest.mark.parametrize("variable", ["", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "LLAMA_CACHE"])
def test_a_model_of_hugging_face_is_found_where_its_tools_keep_it(home, tmp_path, monkeypatch, variable):
    below = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}.get(variable, "")
    folder = tmp_path / "cache" / below if variable else home / ".cache/huggingface/hub"
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    snapshot = hub(folder, {"some-Q4_K_M.gguf": odd.WHOLE, "mmproj-F16.gguf": odd.FILES["mmproj.gguf"][0]})
    for name in (REPO, f"{REPO}:Q4_K_M", f"{REPO}:q4_k_m", f"{REPO}/some-Q4_K_M.gguf"):
        assert choice.file_of(Path(f"hf:{name}")) == snapshot / "some-Q4_K_M.gguf"
    assert choice.file_of(Path(f"hf:{REPO}/mmproj-F16.gguf")) == snapshot / "mmproj-F16.gguf"


def test_a_model_that_an_older_llama_cpp_downloaded_is_found(home):
    folder = home / ".cache/llama.cpp"
    folder.mkdir(parents=True)
    file = folder / f"{REPO.replace('/', '_')}_some-Q8_0.gguf"
    file.write_bytes(odd.WHOLE)
    assert (
        choice.file_of(Path(f"hf:{REPO}:Q8_0")) == file == choice.file_of(Path(f"hf:{REPO}/some-Q8_0.gguf"))
    )


def test_several_quants_are_named_and_missing_ones_come_with_the_command(home):
    files = {"some-Q4_K_M.gguf": odd.WHOLE, "some-Q8_0.gguf": odd.WHOLE}
    hub(home / ".cache/huggingface/hub", files)
    for name, words in {
        REPO: f"is several models; name one: hf:{REPO}:Q4_K_M, hf:{REPO}:Q8_0",
        f"{REPO}:Q2_K": f"some-Q4_K_M.gguf, some-Q8_0.gguf; download it with `hf download {REPO} --include",
        f"{REPO}/x.gguf": f"download it with `hf download {REPO} 'x.gguf'`",
        "org/other": f"is not in the cache, which has hf:{REPO}; download it with `hf download org/other",
        "org": "cannot read the name hf:org",
        f"{REPO}/../../x": "cannot read the name",
    }.items():
        with pytest.raises(HbfError) as caught:
            choice.file_of(Path(f"hf:{name}"))
        assert words in str(caught.value)


def pulled(store: Path, name: str = "registry.ollama.ai/library/tiny/latest") -> None:
    """A model as ollama has it."""
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True)
    (store / "blobs").mkdir(exist_ok=True)
    (store / "blobs" / DIGEST.replace(":", "-")).write_bytes(odd.WHOLE)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": DIGEST},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def test_a_model_of_ollama_is_served_under_its_name(home, mount):
    pulled(home / ".ollama/models")
    for name in ("tiny", "tiny:latest", "library/tiny"):
        found = choice.file_of(Path(f"ollama:{name}"))
        assert found.name == "tiny-latest.gguf" and ModelFile.of(found).path.name == found.name
    point = mount(found)
    assert sorted(path.name for path in point.iterdir()) == ["model.gguf", "tiny-latest.gguf"]
    assert (point / "tiny-latest.gguf").read_bytes() == odd.WHOLE


def test_ollama_may_be_elsewhere_and_a_name_may_have_a_host(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    pulled(tmp_path / "models", "hf.co/org/repo/Q4_K_M")
    assert choice.file_of(Path("ollama:hf.co/org/repo:Q4_K_M")).name == "repo-Q4_K_M.gguf"
    with pytest.raises(
        HbfError, match=r"which has ollama:hf\.co/org/repo:Q4_K_M; download it with `ollama pull x`"
    ):
        choice.file_of(Path("ollama:x"))


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("[" * 100_000, "is not JSON"),
        ("[]", "names no model"),
        ('{"layers": 3}', "names no model"),
        (
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../x"}]}',
            "no model",
        ),
        (
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:'
            + "c" * 64
            + '"}]}',
            "is not complete",
        ),
    ],
)
def test_a_broken_manifest_is_one_line(home, manifest, words):
    store = home / ".ollama/models"
    pulled(store)
    (store / "manifests/registry.ollama.ai/library/tiny/latest").write_text(manifest)
    with pytest.raises(HbfError, match=words):
        choice.file_of(Path("ollama:tiny"))


def test_every_command_takes_the_names(home, tmp_path):
    hub(home / ".cache/huggingface/hub", {"some-Q4_K_M.gguf": odd.WHOLE})
    name = f"hf:{REPO}:Q4_K_M"
    assert ModelOption(Path(name)).weights().name == "some-Q4_K_M.gguf"
    assert hbf("model", "info", name).returncode == 0
    assert "f16" in hbf("kv", "info", name).stdout
    lines = json.loads(hbf("doctor", name, "--json").stdout)["lines"]
    assert [line["message"] for line in lines if line["name"] == "model"] == ["a sound GGUF"]
    said = hbf("doctor", "hf:org/nothing")
    assert said.returncode == 1 and "hf download org/nothing" in said.stderr
    (home / ".config/hbf").mkdir(parents=True)
    (home / ".config/hbf/config.toml").write_text(f'model = "{name}"')
    assert choice.resolve(None, print).name == "some-Q4_K_M.gguf"


def test_a_link_is_no_way_around_the_bounds_of_a_header(tmp_path, monkeypatch):
    monkeypatch.setattr(cursor, "MAX_STRINGS", 1)
    (tmp_path / "m.gguf").write_bytes(odd.FILES["vocabulary.gguf"][0])
    assert "at most 1 are accepted" in Tree(tmp_path / "m.gguf", ()).doubt()


# Two users


@pytest.fixture(scope="module")
def ns():
    with entered() as namespace:
        namespace.sh("mkdir theirs mine; echo secret > mine/secret.gguf", uid=0)
        namespace.sh(f"chmod 711 mine; chown {STRANGER}:{STRANGER} theirs", uid=0)
        namespace.sh("mkdir -p mnt; chmod 777 mnt", uid=0)
        namespace.sh("echo own > theirs/own.gguf", uid=STRANGER)
        namespace.sh(
            "ln -s $PWD/mine/secret.gguf theirs/link.gguf; ln -s link.gguf theirs/chain.gguf", uid=STRANGER
        )
        yield namespace


def test_root_serves_no_file_that_a_strangers_link_chooses(ns):
    ns.sh(f"chown {USER} mnt", uid=0)
    said = ns.hbf("mount", "--allow-other", "theirs", "mnt", uid=0)
    try:
        assert "2 links are left out" in said.stderr or "1 link is left out" in said.stderr, said.stderr
        assert "past another user's link (" in said.stderr
        assert "secret" not in ns.sh("cat mnt/*.gguf 2>/dev/null || true", uid=0)
    finally:
        ns.hbf("umount", "mnt", uid=0)
    said = ns.hbf("mount", "theirs/link.gguf", "mnt", uid=0)
    assert said.returncode == 1 and "another user's link is in the way" in said.stderr
    # Its own link, root follows.
    ns.sh("ln -s $PWD/mine/secret.gguf mine/link.gguf", uid=0)
    assert ns.hbf("mount", "mine/link.gguf", "mnt", uid=0).returncode == 0
    try:
        assert ns.sh("ls mnt", uid=0).split() == ["link.gguf", "model.gguf"]
        assert ns.sh("cat mnt/link.gguf", uid=0) == "secret\n"
    finally:
        assert ns.hbf("umount", "mnt", uid=0).returncode == 0


def test_who_serves_others_follows_no_strangers_link_either(ns):
    ns.sh(f"chown {USER} mnt; echo user_allow_other > fuse.conf; cat fuse.conf > /etc/fuse.conf", uid=0)
    said = ns.hbf("mount", "theirs", "mnt")
    assert said.returncode == 0 and ns.sh("cat mnt/link.gguf") == "secret\n"
    assert ns.hbf("umount", "mnt").returncode == 0
    said = ns.hbf("mount", "--allow-other", "theirs", "mnt")
    assert "past another user's link" in said.stderr, said.stderr
    assert ns.hbf("umount", "mnt").returncode == 0
