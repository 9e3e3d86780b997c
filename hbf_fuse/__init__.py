"""Emulates High Bandwidth Flash, a coming memory tier for LLM weights, as a FUSE filesystem."""

from hbf_fuse import compiled

__version__ = "0.1.0"

# Before any module that may be compiled is imported.
compiled.decide()
