"""Emulates High Bandwidth Flash, a coming memory tier for LLM weights, as a FUSE filesystem."""

__version__ = "0.1.0"
