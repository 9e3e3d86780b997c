"""Profiles by name, or from a file that `hbf profile measure` or a person wrote."""

from pathlib import Path

from hbf_fuse import documents
from hbf_fuse.tier import SpecError, profiles
from hbf_fuse.tier.profiles import Profile

SUFFIX = ".toml"


def load(name: str) -> Profile:
    """A known device, or what a file NAME.toml describes. SpecError for what is neither, HbfError or OSError
    if the file cannot be read.
    """
    if name.endswith(SUFFIX):
        return profiles.of_document(Path(name).stem, documents.read_toml(Path(name)))
    if name not in profiles.names():
        known = ", ".join(profiles.names())
        raise SpecError(f"unknown profile {name!r}; there are: {known}, or a file NAME{SUFFIX}")
    return profiles.load(name)
