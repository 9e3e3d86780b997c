"""What to serve when nobody says: $HBF_MODEL, the configured model, or a small synthetic one."""

import os
from collections.abc import Callable
from pathlib import Path

from hbf_fuse import documents
from hbf_fuse.errors import HbfError

DEFAULT_PRESET = "tiny"


def cache_dir() -> Path:
    """Where things that can be made again are kept."""
    return _personal("XDG_CACHE_HOME", ".cache") / "hbf"


def config_file() -> Path:
    """The person's own settings."""
    return _personal("XDG_CONFIG_HOME", ".config") / "hbf" / "config.toml"


def _personal(variable: str, usual: str) -> Path:
    try:
        return Path(os.environ.get(variable) or Path.home() / usual)
    except RuntimeError as error:
        raise HbfError(f"this user has no home directory; set $HOME or ${variable}") from error


def resolve(source: Path | None, tell: Callable[[str], None]) -> Path:
    """The absolute path of what to serve, making the synthetic model if it comes to that."""
    if source is not None:
        return _existing(source, "")
    if named := os.environ.get("HBF_MODEL"):
        return _existing(Path(named), " ($HBF_MODEL)")
    if named := _configured():
        return _existing(named_in(config_file(), named), f" (`model` in {config_file()})")
    return preset_model(DEFAULT_PRESET, tell)


def named_in(file: Path, name: str) -> Path:
    """A path that a file names, relative to that file. HbfError if its `~` is nobody's home."""
    try:
        return file.parent / Path(name).expanduser()
    except RuntimeError as error:
        raise HbfError(
            f"{file} names {name!r}: there is no such home directory; write the whole path"
        ) from error


def preset_model(name: str, tell: Callable[[str], None]) -> Path:
    """The synthetic model of a preset, made once under the cache directory."""
    path = cache_dir() / f"{name}.gguf"
    if not path.exists():
        # Brings numpy, which costs every other command a quarter of a second.
        from hbf_fuse.gguf import presets, synth

        tell(f"no model named: making the synthetic model {name!r} once, at {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        synth.write(presets.load(name), path)
    else:
        tell(f"no model named: taking the synthetic model {path}")
    return path


def _existing(path: Path, origin: str) -> Path:
    if not path.exists():
        raise HbfError(
            f"source {path}{origin} does not exist; name a GGUF, or make one: hbf model make tiny -o FILE"
        )
    return path.resolve()


def _configured() -> str | None:
    file = config_file()
    if not file.exists():
        return None
    try:
        settings = documents.read_toml(file)
    except (HbfError, OSError) as error:
        raise HbfError(f"{error}; fix {file} or move it away") from error
    unknown = sorted(set(settings) - {"model"})
    if unknown:
        raise HbfError(f"unknown key {unknown[0]!r} in {file}; known: model")
    model = settings.get("model")
    if model is not None and not (isinstance(model, str) and model):
        raise HbfError(f"`model` in {file} must be a path in quotes")
    return model
