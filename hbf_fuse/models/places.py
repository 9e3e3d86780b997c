"""Where this user's settings and cache are."""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from hbf_fuse.errors import HbfError, naming
from hbf_fuse.folder import Folder
from hbf_fuse.host import answers


def cache_dir() -> Path:
    """Folder for files that can be made again."""
    return _answering(_personal("XDG_CACHE_HOME", ".cache") / "hbf")


def made_cache_dir() -> Folder:
    """The same, made if it is missing, for this user alone to write to. HbfError and OSError as for
    Folder.at.
    """
    path = cache_dir()
    above = Folder.at(path.parent)
    with suppress(FileExistsError), naming(path):
        os.mkdir(path.name, 0o755, dir_fd=above.fd)
    return Folder.at(path)


def config_file() -> Path:
    """The user's own settings."""
    return _answering(_personal("XDG_CONFIG_HOME", ".config") / "hbf" / "config.toml")


@cache
def _answering(path: Path) -> Path:
    """The path, if it is not on a mount that is stuck: NoAnswer."""
    answers.require(path)
    return path


def home() -> Path:
    """This user's home directory. RuntimeError if there is none."""
    named = Path.home()
    if not named.is_absolute():
        raise RuntimeError("$HOME is not an absolute path")
    return named


def _personal(variable: str, usual: str) -> Path:
    """A relative path in the variable is not valid and to be ignored (XDG Base Directory Specification)."""
    named = Path(os.environ.get(variable, ""))
    try:
        return named if named.is_absolute() else home() / usual
    except RuntimeError as error:
        raise HbfError(
            "this user has no home directory", f"set $HOME or ${variable} to a whole path"
        ) from error
