"""SHA-256 of models, kept in hashes.json of the cache folder: a file that has not changed is not read again.

A file is recognised by its device, inode, size, mtime and ctime. On tmpfs, a program that writes through a
mapping changes none of them.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hbf_fuse import documents
from hbf_fuse.errors import HbfError, naming
from hbf_fuse.folder import Folder
from hbf_fuse.models import places

NAME = "hashes.json"
MOST_FILES = 1000
"""The hashes of the newest models are kept: of so many files together."""

YOUNG_NS = 2_000_000_000
"""Some filesystems keep times in steps of 2 s. Within a step, a file can be written again unseen."""

_BLOCK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIGURES = 5

Key = tuple[int, ...]
"""A file: st_dev, st_ino, st_size, st_mtime_ns, st_ctime_ns."""

Kept = dict[tuple[Key, ...], str]
"""The hash of each model by its files, in order; the newest last."""


def of(parts: Sequence[Path], reading: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of all bytes of a model's files, in order. OSError if one cannot be read.

    reading: called before the files are read, which takes about a second per GiB.
    """
    folder, before_ns = _private_folder(), time.time_ns()
    keys = tuple(_key(part.stat()) for part in parts)
    young = max(max(key[3:]) for key in keys) > before_ns - YOUNG_NS
    if folder is None or young:
        reading()
        return _read(parts)[0]
    kept = _load(folder)
    if keys not in kept:
        reading()
        digest, read = _read(parts)
        if read != keys:
            return digest
        kept[keys] = digest
        with suppress(HbfError):  # it is only slower without
            documents.write_in(folder, NAME, _text(kept))
    return kept[keys]


def _key(info: os.stat_result) -> Key:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _read(parts: Sequence[Path]) -> tuple[str, tuple[Key, ...]]:
    """The hash of files, and what they are recognised by after they were read."""
    digest, keys = hashlib.sha256(), []
    for part in parts:
        with naming(part), part.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
            keys.append(_key(os.fstat(file.fileno())))
    return digest.hexdigest(), tuple(keys)


def _private_folder() -> Folder | None:
    """The cache folder; None if another user may write there, or if there can be none."""
    try:
        folder = places.made_cache_dir()
    except (HbfError, OSError):
        return None
    return None if folder.is_shared else folder


def _load(folder: Folder) -> Kept:
    """What is kept. Nothing for a file that another user may write, and for a damaged one."""
    with suppress(HbfError, OSError, ValueError, TypeError, KeyError):
        info = os.lstat(NAME, dir_fd=folder.fd)
        if info.st_uid == os.geteuid() and not info.st_mode & 0o022:
            document = documents.read_json_in(folder, NAME)
            return dict(_checked(entry) for entry in document["models"])
    return {}


def _checked(entry: Any) -> tuple[tuple[Key, ...], str]:
    """One entry as it was written. ValueError, TypeError or KeyError for anything else."""
    digest = entry["sha256"]
    keys = tuple(tuple(file) for file in entry["files"])
    whole = all(len(key) == _FIGURES and all(type(figure) is int for figure in key) for key in keys)
    if not (whole and keys and _SHA256.fullmatch(digest)):
        raise ValueError
    return keys, digest


def _text(kept: Kept) -> str:
    entries: list[str] = []
    files = 0
    for keys, digest in reversed(kept.items()):
        files += len(keys)
        if files > MOST_FILES:
            break
        entries.insert(0, json.dumps({"files": keys, "sha256": digest}))
    return '{"models": [\n' + ",\n".join(entries) + "\n]}\n"
