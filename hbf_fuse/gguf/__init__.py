"""GGUF files: what is in one, what its KV cache costs, and synthetic ones. Imports nothing of ours."""

from hbf_fuse.gguf.reader import GgufError, GgufFile, Tensor, read

__all__ = ["GgufError", "GgufFile", "Tensor", "read"]
