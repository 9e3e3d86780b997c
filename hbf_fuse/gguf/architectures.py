"""What llama.cpp keeps for each architecture: architectures.toml, checked. Rules alone; geometry.py applies
them to a model.
"""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, ClassVar

from hbf_fuse.gguf.reader import GgufError


class _Rule:
    """Checks what a rule may say. GgufError for anything else."""

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for name, choices in self.CHOICES.items():
            if getattr(self, name) not in choices:
                raise GgufError(
                    f"architectures.toml: {name} = {getattr(self, name)!r} is not one of {choices}"
                )


@dataclass(frozen=True)
class Window(_Rule):
    """Layers that keep the last tokens alone.

    when: always; named: where the file names a window above 0; unless-zero: unless it names 0. size: where
    the file names none, in tokens; None: it must name one. fixed: whatever it names. layers: all; trunk: all
    that decode and have no state; listed: the file must list them; pattern: the file's list or number, or
    all but one of full_every, which is the last of each, or with full_first the first. block_count: only for
    so many layers. all_with: a key that makes it all layers where it is above 0.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "kind": ("window", "chunked"),
        "when": ("always", "named", "unless-zero"),
        "layers": ("pattern", "listed", "trunk", "all"),
    }
    kind: str = "window"
    when: str = "always"
    size: int | None = None
    fixed: bool = False
    layers: str = "pattern"
    full_every: int = 1
    full_first: bool = False
    block_count: int | None = None
    all_with: str = ""


@dataclass(frozen=True)
class State(_Rule):
    """Layers with a recurrent state of a constant size.

    kind: by which formula (llama_hparams::n_embd_r and n_embd_s). groups: Mamba's group_count is read.
    layers: all, and no layer has keys and values; beside: all, which have them, too; headless: those without
    KV heads; headless-no-ff: of those the ones that do not feed forward; interval: those that the file
    lists, or all but each interval-th.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "kind": ("mamba", "rwkv", "shortconv", "kda", "linear"),
        "layers": ("all", "beside", "headless", "headless-no-ff", "interval"),
    }
    kind: str
    layers: str
    groups: bool = False
    interval: int = 1


@dataclass(frozen=True)
class Indexer(_Rule):
    """Layers with a key a token for choosing what to attend to.

    layers: trunk: all that decode; attention: those with keys and values; after-dense: from the first sparse
    layer on; typed: those of the file's indexer.types, and where it has none all, none, or those of GLM-5.2;
    required: it must. keys_only: without a value even where attention has one. rows: keys side by side where
    the key rows_with is above 0, else one. with_top_k: only where the file names top_k.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "layers": ("trunk", "attention", "after-dense", "typed"),
        "types": ("all", "none", "required", "glm-5.2"),
    }
    layers: str
    types: str = "all"
    keys_only: bool = False
    rows: int = 1
    rows_with: str = ""
    with_top_k: bool = False


@dataclass(frozen=True)
class Architecture:
    """The rules for one architecture. source: where llama.cpp has them. known: whether the table does.

    without: why it has no cache, if so. mla: keys alone where the file names both lengths. nextn_cached:
    layers that predict further tokens are cached, too. shares, own_layers: how many of the last layers use
    the cache of earlier ones, as the file says, or all behind so many. compressed: DeepSeek-V4's. loops:
    each has its own cache. router: one more layer with one head. padded_values: every layer's are as wide as
    the widest. own_widths: head widths are read even where the first layer has no heads.
    """

    name: str
    source: str = ""
    known: bool = True
    without: str = ""
    window: Window | None = None
    state: State | None = None
    indexer: Indexer | None = None
    mla: bool = False
    nextn_cached: bool = False
    shares: bool = False
    own_layers: int | None = None
    compressed: bool = False
    loops: bool = False
    router: bool = False
    padded_values: bool = False
    own_widths: bool = False


@dataclass(frozen=True)
class Table:
    """version: of llama.cpp. hints: beginnings of keys that say that there is more than keys and values."""

    version: str
    plain: tuple[str, ...]
    hints: tuple[str, ...]
    without: dict[str, str] = field(default_factory=dict)
    caches: dict[str, dict[str, Any]] = field(default_factory=dict)

    def names(self) -> list[str]:
        return sorted([*self.plain, *self.without, *self.caches])

    def of(self, name: str) -> Architecture:
        """An architecture's rules; plain ones, not known, for a name that the table lacks."""
        if name in self.without:
            return Architecture(name, "llama_model::create_memory", without=self.without[name])
        if name in self.caches:
            return _architecture(name, self.caches[name])
        return Architecture(name, "llama_model_base::load_hparams", known=name in self.plain)


@cache
def table() -> Table:
    """The table that comes with the package."""
    return parse((resources.files("hbf_fuse.gguf") / "architectures.toml").read_text())


def parse(text: str) -> Table:
    """A table from its TOML. GgufError for unknown keys and values, and for a name that stands in it
    twice.
    """
    try:
        known = Table(**tomllib.loads(text))
        for name, rules in known.caches.items():
            _architecture(name, rules)
    except (TypeError, ValueError) as error:
        raise GgufError(f"architectures.toml cannot be read: {error}") from error
    names = known.names()
    if len(set(names)) < len(names):
        raise GgufError("architectures.toml: an architecture stands in it twice")
    return known


def _architecture(name: str, rules: dict[str, Any]) -> Architecture:
    kinds = {"window": Window, "state": State, "indexer": Indexer}
    made = {key: kinds[key](**value) if key in kinds else value for key, value in rules.items()}
    return Architecture(name, **made)
