"""The geometries of synthetic models: one TOML file each in this folder."""

import re
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import get_type_hints

from hbf_fuse.gguf.reader import GgufError

_ROW = 256
"""Weights per block of the K-quants."""

_MOST = {
    "layers": 1024,
    "embedding": 1 << 16,
    "heads": 1024,
    "kv_heads": 1024,
    "ffn": 1 << 20,
    "vocabulary": 1 << 22,
    "context": 1 << 30,
    "rope_freq_base": 1e12,
    "experts": 1024,
    "experts_used": 1024,
}


@dataclass(frozen=True)
class Preset:
    """A model's geometry. experts 0 means dense; embedding and ffn are multiples of 256 (K-quant rows).

    words: with a text for each token, which llama-server needs. Without, llama.cpp has nothing to parse.

    Raises GgufError for an impossible geometry.
    """

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
    words: bool = False

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise GgufError(f"preset {self.name}: {name} must be of type {kind.__name__}")
            if name in _MOST and not 0 <= value <= _MOST[name]:
                raise GgufError(f"preset {self.name}: {name} must be from 0 to {_MOST[name]}")
        for name in ("layers", "embedding", "heads", "kv_heads", "ffn", "vocabulary", "context"):
            if not getattr(self, name):
                raise GgufError(f"preset {self.name}: {name} must be above 0")
        if self.embedding % _ROW or self.ffn % _ROW:
            raise GgufError(f"preset {self.name}: embedding and ffn must be multiples of {_ROW}")
        if self.embedding % self.heads or self.heads % self.kv_heads:
            raise GgufError(f"preset {self.name}: heads must divide embedding, and kv_heads heads")
        if self.experts_used > self.experts:
            raise GgufError(f"preset {self.name}: experts_used is above experts")
        if not self.rope_freq_base > 0 or not re.fullmatch(r"[a-z0-9-]{1,64}", self.architecture):
            raise GgufError(f"preset {self.name}: rope_freq_base or architecture makes no sense")


def names() -> list[str]:
    """All presets, sorted."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load(name: str) -> Preset:
    """A preset by name. GgufError lists the known names."""
    if name not in names():
        raise GgufError(f"unknown preset {name!r}", f"there are: {', '.join(names())}")
    return parse(name, (resources.files(__name__) / f"{name}.toml").read_text())


def parse(name: str, text: str) -> Preset:
    """A preset from its TOML. GgufError if it is not the geometry of a model."""
    try:
        return Preset(name=name, **tomllib.loads(text))
    except GgufError:
        raise
    except (ValueError, RecursionError, TypeError) as error:
        raise GgufError(f"preset {name} cannot be read: {error}") from error
