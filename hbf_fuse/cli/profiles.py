"""Profiles by name, or from a file that `hbf profile measure` or a person wrote."""

from pathlib import Path

from hbf_fuse import documents
from hbf_fuse.tier import profiles
from hbf_fuse.tier.profiles import Profile

SUFFIX = ".toml"


def load(name: str) -> Profile:
    """A known device, or what a file NAME.toml describes. SpecError for what is neither, HbfError or OSError
    if the file cannot be read.
    """
    if not name.endswith(SUFFIX):
        return profiles.load(name)
    file = Path(name)
    return profiles.parse(file.stem, documents.read_text(file))
