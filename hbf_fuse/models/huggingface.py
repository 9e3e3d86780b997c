"""Models in the caches of huggingface_hub and llama.cpp.

huggingface_hub, and llama.cpp since it shares that cache (common/hf-cache.cpp): models--ORG--REPO/refs/main
names a folder in snapshots/, with links into blobs/. Older llama.cpp (common/arg.cpp): ORG_REPO_FILE.gguf.
"""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.folder import read_file
from hbf_fuse.gguf import GgufError, kinds
from hbf_fuse.gguf.reader import glance
from hbf_fuse.host import answers, linux
from hbf_fuse.models import split
from hbf_fuse.models.places import home

_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+)|/(?P<file>[^/].*))?", re.ASCII)
_QUANT = re.compile(
    r"[-._]((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|BF16|F16|F32|FP16|MXFP4\w*))(?=[-._])", re.ASCII | re.IGNORECASE
)
_REVISION = re.compile(r"[\w.-]{1,100}", re.ASCII)
_MOST_FILES = 10_000
_MOST_SHOWN = 10
_XDG = "XDG_CACHE_HOME"


def find(name: str) -> Path:
    """The file of ORG/REPO[:QUANT|/FILE]; the first part of a split model. HbfError as stores.find."""
    parsed = _NAME.fullmatch(name)
    if parsed is None or ".." in Path(parsed["file"] or "").parts:
        raise HbfError(
            f"cannot read the name hf:{name}", "write it like hf:ORG/REPO:Q4_K_M or hf:ORG/REPO/FILE"
        )
    repo, quant, file = parsed["repo"], parsed["quant"], parsed["file"]
    there = dict(_files(repo))
    if not there:
        raise HbfError(f"hf:{name} is not in the cache, which has {_listed(_repos())}", _download(repo))
    if file is not None:
        wanted = [path for key, path in there.items() if key in (file, f"{repo.replace('/', '_')}_{file}")]
    else:
        wanted = [path for key, path in there.items() if _fits(key, quant) and _is_model(path)]
    if len(wanted) == 1:
        return wanted[0]
    if not wanted:
        what = f"hf:{name} is not in the cache, which has of this repository {_listed(there)}"
        raise HbfError(what, _download(repo, file or (quant and f"*{quant}*")))
    if len(quants := sorted({found for path in wanted if (found := _quant(path.name))})) == len(wanted):
        raise HbfError(
            f"hf:{name} is several models", f"name one: {_listed(f'hf:{repo}:{q}' for q in quants)}"
        )
    raise HbfError(
        f"hf:{name} is several models", f"name one: {_listed(f'hf:{repo}/{p.name}' for p in wanted)}"
    )


def _download(repo: str, what: str | None = "*Q4_K_M*") -> str:
    pattern = what or "*.gguf"
    option = f"--include '{pattern}'" if "*" in pattern else f"'{pattern}'"
    return f"download it with `hf download {repo} {option}`"


def _hubs() -> Iterator[Path]:
    """Where huggingface_hub and llama.cpp look, in their order."""
    for variable, below in (
        ("LLAMA_CACHE", ""),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        (_XDG, "huggingface/hub"),
    ):
        named = os.environ.get(variable)
        if named and (variable != _XDG or Path(named).is_absolute()):
            yield Path(named) / below
    if home := _home():
        yield home / ".cache/huggingface/hub"


def _flat() -> Iterator[Path]:
    """Where older versions of llama.cpp keep their downloads."""
    if named := os.environ.get("LLAMA_CACHE"):
        yield Path(named)
    if Path(named := os.environ.get(_XDG, "")).is_absolute():
        yield Path(named) / "llama.cpp"
    if home := _home():
        yield home / ".cache/llama.cpp"


def _answering(folders: Iterator[Path]) -> Iterator[Path]:
    """Those before which no stuck mount is: NoAnswer."""
    for folder in folders:
        answers.require(folder)
        yield folder


def _home() -> Path | None:
    try:
        return home()
    except RuntimeError:
        return None


def _files(repo: str) -> Iterator[tuple[str, Path]]:
    """The GGUFs of a repository by their names in it, from the first cache that has any. Of a split model
    the first part.
    """
    for hub in _answering(_hubs()):
        snapshot = _snapshot(hub / f"models--{repo.replace('/', '--')}")
        found = (
            [(str(path.relative_to(snapshot)), path) for path in _ggufs(snapshot, "**/")] if snapshot else []
        )
        if found:
            yield from found
            return
    start = f"{repo.replace('/', '_')}_"
    for folder in _answering(_flat()):
        if found := [(path.name, path) for path in _ggufs(folder) if path.name.startswith(start)]:
            yield from found
            return


def _ggufs(folder: Path, depth: str = "") -> list[Path]:
    """Whole GGUFs, sorted; of split ones the first part."""
    try:
        paths = sorted(islice(folder.glob(f"{depth}*.gguf"), _MOST_FILES))
    except OSError:
        return []
    named = ((path, split.part_name(path.name)) for path in paths)
    return [path for path, part in named if part is None or part.number == 1]


def _snapshot(repo: Path) -> Path | None:
    """The folder of the newest revision that is there."""
    try:
        told = (
            read_file(os.open(repo / "refs/main", linux.READ), 200).decode("ascii", errors="replace").strip()
        )
    except (OSError, ValueError):
        told = ""
    if _REVISION.fullmatch(told) and told not in (".", "..") and _ggufs(repo / "snapshots" / told, "**/"):
        return repo / "snapshots" / told
    try:
        folders = [path for path in (repo / "snapshots").iterdir() if path.is_dir()]
        return max(folders, key=lambda path: path.stat().st_mtime_ns, default=None)
    except OSError:
        return None


def _repos() -> Iterator[str]:
    """Names of the repositories with a GGUF."""
    for hub in _answering(_hubs()):
        for folder in sorted(islice(hub.glob("models--*--*"), _MOST_FILES)):
            snapshot = _snapshot(folder)
            if snapshot and _ggufs(snapshot, "**/"):
                yield "hf:" + folder.name.removeprefix("models--").replace("--", "/")
    for folder in _answering(_flat()):
        yield from (path.name for path in _ggufs(folder))


def _fits(file: str, quant: str | None) -> bool:
    if quant is None:
        return True
    return re.search(rf"(?:^|[-._/]){re.escape(quant)}[-._]", file, re.IGNORECASE) is not None


def _quant(name: str) -> str:
    found = _QUANT.search(name)
    return found[1] if found else ""


def _is_model(path: Path) -> bool:
    """Whether it may be a language model: not if it says that it is something else."""
    try:
        metadata, _ = glance(path, os.open(path, linux.READ))
    except GgufError:
        return True
    except OSError:
        return False
    return kinds.of(metadata) == kinds.MODEL


def _listed(names: "Iterator[str] | dict[str, Path]") -> str:
    known = list(dict.fromkeys(names))
    shown = ", ".join(known[:_MOST_SHOWN]) or "no GGUF"
    return f"{shown}, ..." if len(known) > _MOST_SHOWN else shown
