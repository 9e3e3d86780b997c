"""Known devices as data: one TOML file each in this folder, with a source or a reason for every value.

A file holds `about`, and per parameter of TierSpec a table with `value` and one of `sourced` (the source),
`measured` (when, where and how; `hbf profile measure` writes such files) or `assumed` (why this value).
`capacity_gb` is allowed, too.
"""

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from hbf_fuse.tier.errors import SpecError
from hbf_fuse.tier.spec import TierSpec

_PARAMETERS = {field.name for field in fields(TierSpec)}
_FACTS = {"capacity_gb"}
LABELS = ("sourced", "measured", "assumed")


@dataclass(frozen=True)
class Value:
    """A parameter with its provenance. label: one of LABELS. why: the source, or what else it says."""

    value: Any
    label: str
    why: str


@dataclass(frozen=True)
class Profile:
    """A device. Parameters that are left out have TierSpec's defaults."""

    name: str
    about: str
    values: dict[str, Value]

    def spec(self) -> TierSpec:
        """As a tier."""
        return TierSpec(**{key: known.value for key, known in self.values.items() if key in _PARAMETERS})


def names() -> list[str]:
    """All profiles, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str) -> Profile:
    """A profile by name. SpecError if it is unknown or breaks the rules above."""
    if name not in names():
        raise SpecError(f"unknown profile {name!r}; there are: {', '.join(names())}")
    return parse(name, (resources.files(__name__) / f"{name}.toml").read_text())


def parse(name: str, text: str) -> Profile:
    """A profile from its TOML."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"profile {name} is not TOML: {error}") from error
    return of_document(name, document)


def of_document(name: str, document: dict[str, Any]) -> Profile:
    """A profile from the tables of its TOML."""
    about = document.get("about")
    if not isinstance(about, str):
        raise SpecError(f"profile {name}: `about` is missing")
    entries = {key: entry for key, entry in document.items() if key != "about"}
    profile = Profile(name, about, {key: _value(name, key, entry) for key, entry in entries.items()})
    profile.spec()
    return profile


def _value(name: str, key: str, entry: Any) -> Value:
    if key not in _PARAMETERS | _FACTS:
        raise SpecError(
            f"profile {name}: unknown key {key!r}; known: {', '.join(sorted(_PARAMETERS | _FACTS))}"
        )
    labels = [label for label in LABELS if isinstance(entry, dict) and label in entry]
    if len(labels) != 1 or set(entry) != {"value", labels[0]} or not isinstance(entry[labels[0]], str):
        raise SpecError(f"profile {name}: {key} needs `value` and one of {', '.join(LABELS)}, each once")
    value = entry["value"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in _FACTS and not (is_number and 0 < value < 1e9):
        raise SpecError(f"profile {name}: {key} must be a number above 0")
    return Value(value, labels[0], entry[labels[0]])


def tier_of(fields: dict[str, Any]) -> TierSpec:
    """A tier from a table with TierSpec's names. `profile` in it sets the starting values.

    SpecError for unknown names and for values that no tier can have.
    """
    rest = {key: value for key, value in fields.items() if key != "profile"}
    base = load(str(fields["profile"])).spec().to_dict() if "profile" in fields else {}
    return TierSpec.from_dict({**base, **rest})
