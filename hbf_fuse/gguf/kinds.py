"""What a GGUF is if it is not a language model, and what else keeps llama.cpp from loading a file as one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hbf_fuse.gguf.downloads import unfinished
from hbf_fuse.gguf.reader import GgufError, GgufFile, read

MODEL = "a language model"

_TYPES = {
    "adapter": "an adapter (LoRA)",
    "imatrix": "an imatrix",
    "mmproj": "an mmproj, the encoder beside a model",
    "controlvector": "a control vector",
}
"""By general.type, which the metadata of a model does not need, or by an architecture with the same name."""

_ARCHITECTURES = {"clip": "mmproj", "controlvector": "controlvector"}

_ALIGNMENT = 32
"""ggml's CPU buffers: with less, llama.cpp stops at an assertion."""

_ZEROS = 1 << 16
"""So many bytes of zeros at the end are no weights."""


def of(metadata: Mapping[str, Any]) -> str:
    """What a file is, by its metadata alone: MODEL, also for one whose weights are elsewhere."""
    kind = metadata.get("general.type")
    architecture = metadata.get("general.architecture")
    for known in (kind, _ARCHITECTURES.get(str(architecture))):
        if isinstance(known, str) and known in _TYPES:
            return _TYPES[known]
    if "adapter.type" in metadata:
        return _TYPES["adapter"]
    part = metadata.get("split.no", 0)
    if isinstance(part, int) and part > 0:
        return f"part {part + 1} of {metadata.get('split.count', '?')} of a split model"
    return MODEL


def of_model(model: GgufFile) -> str:
    """What a file with this header is: MODEL only if it has weights."""
    kind = of(model.metadata)
    if kind == MODEL and not model.tensors:
        has_words = "tokenizer.ggml.tokens" in model.metadata
        return "a vocabulary without weights" if has_words else "metadata without weights"
    count = model.metadata.get("split.tensors.count", 0)
    if kind == MODEL and isinstance(count, int) and count > len(model.tensors):
        return f"part 1 of {model.metadata.get('split.count', '?')} of a split model"
    return kind


def require_model(model: GgufFile, weights: bool = True) -> None:
    """GgufError for a file that is not a language model, or not its first part. weights: it must have them,
    too.
    """
    kind = of_model(model) if weights else of(model.metadata)
    if kind.startswith("part "):
        raise GgufError(f"{model.path} is {kind}", "name its first part, and keep the names of all")
    if kind != MODEL:
        raise GgufError(f"{model.path} is not a language model but {kind}", "name the model's own GGUF")


def doubt(model: GgufFile, path: Path | None = None, fd: int | None = None) -> str:
    """Why a file with a sound header may still not load, as a sentence; "" if nothing speaks against it.

    path: its own, if it is not the model's, as for a part. fd: the file if it is open; it stays open. OSError
    if it cannot be opened.
    """
    path = path or model.path
    alignment = model.metadata.get("general.alignment", _ALIGNMENT)
    if alignment & (alignment - 1) or alignment < _ALIGNMENT:
        return f"{path} aligns its tensors to {alignment} bytes: llama.cpp wants a power of two from 32 on"
    if model.tensors and _ends_in_zeros(path, fd):
        return f"{path} ends in zeros: perhaps it is still being downloaded"
    if ending := unfinished(path.name):
        return f"{path} is still being downloaded, as its name says ({ending})"
    return ""


def defect(path: Path, fd: int | None = None, is_part: bool = False) -> str:
    """Why llama.cpp does not load a file as a model, as a sentence with its path; "" if it does.

    fd: the file if it is open; it is closed. is_part: it is one of a whole split model. OSError if it cannot
    be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else fd
    try:
        model = read(path, os.dup(fd))
        kind = of_model(model)
        if kind != MODEL and not (is_part and kind.startswith("part ")):
            return f"{path} is {kind}"
        return doubt(model, path, fd)
    except GgufError as error:
        return error.what
    finally:
        os.close(fd)


def _ends_in_zeros(path: Path, fd: int | None) -> bool:
    own = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else os.dup(fd)
    try:
        size = os.fstat(own).st_size
        return size > 2 * _ZEROS and not any(os.pread(own, _ZEROS, size - _ZEROS))
    finally:
        os.close(own)
