"""Models that ollama has downloaded: manifests/HOST/NAMESPACE/NAME/TAG names the layers, blobs/ has them.

A blob has no name but its hash. A link in our own cache gives it one, as NAME-TAG.gguf.
"""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError, naming
from hbf_fuse.folder import Folder
from hbf_fuse.host import answers
from hbf_fuse.models.places import cache_dir, home

_NAME = re.compile(r"(?P<path>[\w.-]+(?:/[\w.-]+){0,2})(?::(?P<tag>[\w.-]+))?", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL = "application/vnd.ollama.image.model"
_DEFAULTS = ("registry.ollama.ai", "library")
_MOST_NAMES = 10_000
_MOST_SHOWN = 10


def find(name: str) -> Path:
    """A file with the name of NAME[:TAG]. HbfError as stores.find."""
    parsed = _NAME.fullmatch(name)
    parts = parsed["path"].split("/") if parsed else []
    if parsed is None or any(part in (".", "..") for part in [*parts, parsed["tag"]]):
        raise HbfError(f"cannot read the name ollama:{name}", "write it like ollama:llama3.2:3b")
    tag = parsed["tag"] or "latest"
    below = Path("manifests", *_DEFAULTS[: 3 - len(parts)], *parts, tag)
    pull = f"download it with `ollama pull {name}`"
    store = next((each for each in _stores() if _is_file(each / below)), None)
    if store is None:
        raise HbfError(f"ollama:{name} is not in its folder, which has {_listed()}", pull)
    blob = store / "blobs" / _digest(store / below).replace(":", "-")
    if not _is_file(blob):
        raise HbfError(f"ollama:{name} is not complete: {blob} is missing", pull)
    return _named(blob, f"{parts[-1]}-{tag}.gguf")


def _stores() -> Iterator[Path]:
    """Where ollama keeps models: its variable, the user's own, the service's."""
    if named := os.environ.get("OLLAMA_MODELS"):
        yield Path(named)
    with contextlib.suppress(RuntimeError):
        yield home() / ".ollama/models"
    yield Path("/usr/share/ollama/.ollama/models")


def _is_file(path: Path) -> bool:
    try:
        answers.require(path)
        return path.is_file()
    except OSError:
        return False


def _digest(manifest: Path) -> str:
    """Of the layer that is the model. HbfError for a manifest without one."""
    document = documents.read_json(manifest)
    layers: Any = document.get("layers") if isinstance(document, dict) else None
    for layer in layers if isinstance(layers, list) else []:
        if isinstance(layer, dict) and layer.get("mediaType") == _MODEL:
            digest = layer.get("digest")
            if isinstance(digest, str) and _DIGEST.fullmatch(digest):
                return digest
    raise HbfError(f"{manifest} names no model", "it is a name that ollama has for something else")


def _named(blob: Path, name: str) -> Path:
    """A link with this name to a blob, in a folder of its own."""
    blob = blob.absolute()
    folder = Folder.at(cache_dir() / "ollama" / blob.name[:19])
    try:
        if os.readlink(name, dir_fd=folder.fd) == str(blob):
            return folder.path / name
    except OSError:
        pass
    temporary = f".{secrets.token_hex(6)}"
    with naming(folder.path / name):
        os.symlink(blob, temporary, dir_fd=folder.fd)
    folder.rename(temporary, name)
    return folder.path / name


def _listed() -> str:
    names = list(dict.fromkeys(_names()))
    shown = ", ".join(names[:_MOST_SHOWN]) or "no model"
    return f"{shown}, ..." if len(names) > _MOST_SHOWN else shown


def _names() -> Iterator[str]:
    for store in _stores():
        manifests = store / "manifests"
        try:
            found = sorted(islice(manifests.glob("*/*/*/*"), _MOST_NAMES))
        except OSError:
            continue
        for path in found:
            *parts, tag = path.relative_to(manifests).parts
            kept = (
                parts[2:]
                if tuple(parts[:2]) == _DEFAULTS
                else parts[1:]
                if parts[0] == _DEFAULTS[0]
                else parts
            )
            yield f"ollama:{'/'.join(kept)}:{tag}"
