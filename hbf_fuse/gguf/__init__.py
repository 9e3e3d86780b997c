"""GGUF files: reading a header, the size of the KV cache, synthetic models."""

from hbf_fuse.gguf.reader import GgufError, GgufFile, Tensor, read
from hbf_fuse.gguf.whole import read_whole

__all__ = ["GgufError", "GgufFile", "Tensor", "read", "read_whole"]
