"""The geometries of synthetic models: one TOML file each in this folder."""

import tomllib
from dataclasses import dataclass
from importlib import resources

from hbf_fuse.gguf.reader import GgufError


@dataclass(frozen=True)
class Preset:
    """A model's geometry. experts 0 means dense; embedding and ffn are multiples of 256 (K-quant rows)."""

    name: str
    about: str
    architecture: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    ffn: int
    vocabulary: int
    context: int
    rope_freq_base: float = 10_000.0
    attention_bias: bool = False
    experts: int = 0
    experts_used: int = 0


def names() -> list[str]:
    """All presets, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str) -> Preset:
    """A preset by name; GgufError lists the names there are."""
    if name not in names():
        raise GgufError(f"unknown preset {name!r}; there are: {', '.join(names())}")
    text = (resources.files(__name__) / f"{name}.toml").read_text()
    return Preset(name=name, **tomllib.loads(text))
