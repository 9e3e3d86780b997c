"""Traces: their attribution to tensors, and their replay on other tiers."""

import functools
import json
from pathlib import Path
from typing import Any

from fuzzing import anygguf
from fuzzing.edits import edited, with_edits
from fuzzing.promise import Target, accepted, file_of
from fuzzing.tiers import SLOW_SPEC
from hbf_fuse import gguf
from hbf_fuse.cli import trace as cli_trace
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces import attribution, chains
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.traces.trace import RECORD, Trace, header_line

_TRACE = {
    "header": {
        "tier": SLOW_SPEC.to_dict(),
        "tiers": {"hbf": SLOW_SPEC.to_dict(), "dram": TierSpec().to_dict()},
        "source": "model.gguf",
        "files": {"2": {"path": "model.gguf", "size": 16384}},
    },
    "reads": [
        [
            1000 * count,
            1000 * count + 800,
            1000 * count + 900,
            1024 * count,
            1024,
            7 + count % 2,
            2,
            count % 2,
            0,
        ]
        for count in range(16)
    ],
}
_PHASES = [Phase("prefill", 8, 2000, 5000), Phase("decode", 4, 6000, 9000)]
_MASKS = (*[(1 << 64) - 1] * 4, *[(1 << 32) - 1] * 3, *[(1 << 16) - 1] * 2)


def trace(data: bytes) -> None:
    """A trace: its attribution to tensors, and its replay on other tiers."""
    known = accepted(Trace.parse, _trace_bytes(edited(_TRACE, data)) if data[:1] == b"\xff" else data)
    if known is None:
        return
    reads = attribution.of_files(known, ["model.gguf"])
    assert len(list(known)) >= len(reads)
    model = gguf.read(_model())
    shares = attribution.attribute(reads, list(known.header["tiers"]), model.tensors, _PHASES)
    sizes = {one.name: one.nbytes for one in model.tensors}
    depths = attribution.depths(reads)
    json.dumps(cli_trace._document(shares, sizes, attribution.sizes(reads), depths))
    attribution.heat(reads, model.tensors, 5)
    accepted(cli_trace._is_slower, SLOW_SPEC, known)
    for spec in (SLOW_SPEC, TierSpec()):
        if reads:
            json.dumps(accepted(chains.elsewhere, reads, _PHASES, spec))


def _trace_bytes(document: dict[str, Any]) -> bytes:
    header, reads = document.get("header"), document.get("reads")
    parts = [header_line(header if isinstance(header, dict) else {"": header})]
    for fields in reads if isinstance(reads, list) else []:
        numbers = (
            [int(each) if isinstance(each, int) else 0 for each in fields] if isinstance(fields, list) else []
        )
        padded = (*numbers, *[0] * len(_MASKS))[: len(_MASKS)]
        parts.append(RECORD.pack(*(number & mask for number, mask in zip(padded, _MASKS, strict=True))))
    return b"".join(parts)


@functools.cache
def _model() -> Path:
    return file_of("traced.gguf", anygguf.packed(anygguf.MODEL))


TARGETS = (Target("trace", trace, with_edits(lambda: _trace_bytes(_TRACE))),)
