"""The twin as a library: shared.h by ctypes. Also whether this installation has the engine at all."""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hbf_fuse.engine.memory import build
from hbf_fuse.errors import HbfError
from hbf_fuse.tier import TierSpec, jitter
from hbf_fuse.tier.draws import KINDS
from hbf_fuse.tier.spec import HASHED

_AGAIN = "install gcc, then run `pip install` again, or tools/setup"


class _Part(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int64), ("first", ctypes.c_double), ("last", ctypes.c_double))


_INTEGERS = ("rate", "latency_ns", "depth", "seek_ns", "page_bytes", "sense_ns", "planes", "hashed")


class Spec(ctypes.Structure):
    """`struct spec` of twin.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in (*_INTEGERS, "seed", "throttled")),
        ("latency_ms", ctypes.c_double),
        ("parts", ctypes.c_int64),
        ("retries", ctypes.c_int64),
        ("part", _Part * jitter.MAX_PARTS),
        ("retry", _Part * jitter.MAX_PARTS),
    )

    @classmethod
    def of(cls, spec: TierSpec) -> "Spec":
        """The tier as Tier and Planes take it apart."""
        parts = jitter.parse(spec.jitter)
        in_planes = [part for part in parts if spec.planes and part.kind == jitter.RETRY]
        by_read = [part for part in parts if part not in in_planes]
        return cls(
            rate=spec.bytes_per_second,
            latency_ns=spec.latency_ns,
            depth=spec.depth,
            seek_ns=round(spec.seek_ms * 1e6),
            page_bytes=spec.page_bytes,
            sense_ns=round(spec.t_read_us * 1000),
            planes=spec.planes,
            hashed=spec.interleave == HASHED,
            seed=spec.seed,
            throttled=spec.throttled,
            latency_ms=spec.latency_ms,
            parts=len(by_read),
            retries=len(in_planes),
            part=_parts(by_read),
            retry=_parts(in_planes),
        )


def _parts(parts: Sequence[jitter.Component]) -> "ctypes.Array[_Part]":
    coded = [_Part(KINDS.index(part.kind), part.values[0], part.values[-1]) for part in parts]
    return (_Part * jitter.MAX_PARTS)(*coded)


class File(ctypes.Structure):
    """`struct file` of shared.h."""

    _fields_ = (
        ("size", ctypes.c_uint64),
        ("first_chunk", ctypes.c_uint64),
        ("first_region", ctypes.c_uint64),
        ("regions", ctypes.c_uint64),
        ("device", ctypes.c_uint64 * 2),
        ("inode", ctypes.c_uint64 * 2),
    )


def shim() -> Path:
    """What programs preload. HbfError as in `twin`."""
    twin()
    return build.FOLDER / build.SHIM


def injector() -> Path:
    """What starts programs that preload nothing. HbfError as in `twin`."""
    twin()
    return build.FOLDER / build.INJECT


@cache
def twin() -> Any:
    """The library. HbfError if it was not built, or from other sources."""
    path = build.FOLDER / build.TWIN
    if not path.exists() or not (build.FOLDER / build.SHIM).exists():
        raise HbfError("the memory engine was not built", _AGAIN)
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise HbfError(f"the memory engine cannot be loaded: {error}", _AGAIN) from error
    found.hbf_digest.restype = ctypes.c_char_p
    if found.hbf_digest().decode() != build.digest():
        raise HbfError("the memory engine is older than its sources", _AGAIN)
    for name in ("hbf_size", "hbf_exchange", "hbf_tiers_at", "hbf_records_at", "hbf_tier_size"):
        getattr(found, name).restype = ctypes.c_uint64
    return found
