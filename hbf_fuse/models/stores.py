"""Models by name, from what other tools have downloaded: `hf:ORG/REPO[:QUANT|/FILE]`, `ollama:NAME[:TAG]`.

Only local caches are read: nothing is fetched.
"""

from pathlib import Path

from hbf_fuse.models import huggingface, ollama

_STORES = {"hf:": huggingface.find, "ollama:": ollama.find}


def is_name(text: str) -> bool:
    """Whether it names a model of another tool. A file of such a name needs its whole path."""
    return text.startswith(tuple(_STORES))


def find(text: str) -> Path:
    """The file of a model that is named so. HbfError says what there is, and which command downloads it."""
    prefix = next(prefix for prefix in _STORES if text.startswith(prefix))
    return _STORES[prefix](text.removeprefix(prefix))
