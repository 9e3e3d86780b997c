"""The model to serve by default: $HBF_MODEL, the configured model, or a small synthetic one."""

import os
from collections.abc import Callable
from pathlib import Path

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import strangers_link
from hbf_fuse.host import answers, linux
from hbf_fuse.models import stores
from hbf_fuse.models.places import cache_dir, config_file, made_cache_dir

DEFAULT_PRESET = "tiny"


def resolve(source: Path | None, tell: Callable[[str], None]) -> Path:
    """The absolute path of what to serve. Makes the synthetic model if nothing else is named."""
    if source is not None:
        return file_of(source)
    if named := os.environ.get("HBF_MODEL"):
        return file_of(Path(named), " ($HBF_MODEL)")
    if named := _configured():
        return file_of(named_in(config_file(), named), f" (`model` in {config_file()})")
    return preset_model(DEFAULT_PRESET, tell)


def named_in(file: Path, name: str) -> Path:
    """A path named in a file, relative to that file, or a model's name in another tool. HbfError if its `~`
    has no home directory.
    """
    if stores.is_name(name):
        return Path(name)
    try:
        return file.parent / Path(name).expanduser()
    except RuntimeError as error:
        raise HbfError(
            f"{file} names {name!r}: there is no such home directory", "write the whole path"
        ) from error


def preset_model(name: str, tell: Callable[[str], None]) -> Path:
    """The synthetic model of a preset, made once in the cache directory."""
    path = cache_dir() / f"{name}.gguf"
    if not path.exists():
        # Imported only when needed: it imports numpy, which takes a quarter of a second.
        from hbf_fuse.gguf import presets, synth

        tell(f"no model named: making the synthetic model {name!r} once, at {path}")
        made_cache_dir()
        synth.write(presets.load(name), path)
    else:
        tell(f"no model named: taking the synthetic model {path}")
    return path


def file_of(path: Path, origin: str = "") -> Path:
    """Where the model is that a person named by a path, or by its name in another tool: absolute, and with
    the name that it was given, even if that is a link. origin: where it was named, for messages.

    HbfError if there is none, or if root would follow another user's link.
    """
    if stores.is_name(str(path)):
        path = stores.find(str(path))
    answers.require(path)
    if not path.exists():
        raise HbfError(
            f"source {path}{origin} does not exist", "name a GGUF, or make one: hbf model make tiny -o FILE"
        )
    found = linux.located(path.absolute())
    if found.is_symlink() and not linux.may_follow(found.lstat()):
        raise strangers_link(found)
    return found


def _configured() -> str | None:
    file = config_file()
    if not file.exists():
        return None
    try:
        settings = documents.read_toml(file)
    except (HbfError, OSError) as error:
        raise HbfError(str(error), f"fix {file} or move it away") from error
    unknown = sorted(set(settings) - {"model"})
    if unknown:
        raise HbfError(f"unknown key {unknown[0]!r} in {file}", "known: model")
    model = settings.get("model")
    if model is not None and not (isinstance(model, str) and model):
        raise HbfError(f"`model` in {file} must be a path in quotes")
    return model
