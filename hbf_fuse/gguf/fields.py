"""Numbers of a GGUF's metadata, believed only where a model can have them."""

from typing import Any

from hbf_fuse.gguf.reader import GgufError, GgufFile

MAX_NUMBER = 1 << 20
"""Of layers, heads and widths: far above any model's, and small enough for a list with one entry a layer."""


def number(model: GgufFile, name: str, default: int | None = None) -> int:
    """A whole number of the metadata, or a GgufError if it is none or none that a model can have."""
    value = model.field(name, default)
    if value is None:
        raise GgufError(f"{model.path} has no {model.architecture}.{name} in its metadata")
    return _believed(model, name, value)


def per_layer(model: GgufFile, name: str, layers: int, default: int | None = None) -> list[int]:
    """A number that is the same for all layers, or a list with one for each."""
    value = model.field(name)
    if isinstance(value, list):
        if len(value) != layers:
            raise GgufError(
                f"{model.path}: {model.architecture}.{name} is a list of {len(value)} for {layers} layers"
            )
        return [_believed(model, name, int(each) if isinstance(each, bool) else each) for each in value]
    return [number(model, name, default)] * layers


def listed(model: GgufFile, name: str, layers: int) -> list[int] | None:
    """The first entries of a list, one a layer, 0 for those that it lacks; None where there is no list."""
    value = model.field(name)
    if not isinstance(value, list):
        return None
    known = [_believed(model, name, int(each) if isinstance(each, bool) else each) for each in value[:layers]]
    return known + [0] * (layers - len(known))


def _believed(model: GgufFile, name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise GgufError(f"{model.path}: {model.architecture}.{name} is not a number that a model can have")
    return value
