"""GGUFs and presets: the reader, everything derived from a model, and the synthesiser."""

import json

from fuzzing import anygguf
from fuzzing.edits import EDITS, edited, edits, text_of, toml, with_edits
from fuzzing.promise import Target, accepted, file_of, scratch
from hbf_fuse import gguf
from hbf_fuse.cli import info
from hbf_fuse.fs.placement import Rule, placements_of
from hbf_fuse.gguf import kv, presets, synth
from hbf_fuse.models import summary
from hbf_fuse.traces import attribution
from hbf_fuse.traces.trace import Read


def model_file(data: bytes) -> None:
    """A GGUF, and everything derived from it: KV sizes, placement, attribution of reads."""
    spoilt = data[:1] == bytes([EDITS])
    path = file_of("model.gguf", anygguf.packed(edited(anygguf.MODEL, data)) if spoilt else data)
    model = accepted(gguf.read, path)
    if model is None:
        return
    for cache_type in kv.CACHE_TYPES:
        known = accepted(kv.bytes_per_token, model, cache_type, cache_type)
        assert known is None or known >= 0
    described = accepted(summary.describe, path)
    json.dumps(described)
    assert described is None or len(list(info._screen(described))) < 40
    (placement,) = accepted(placements_of, [model], [Rule.parse("_exps=hbf"), Rule.parse(".*=dram")]) or [
        None
    ]
    if placement is not None:
        assert placement.bytes_of("hbf") + placement.bytes_of("dram") == model.size
    read = Read(0, 1, 2, 0, model.size, 1, 2, 0)
    shares = attribution.attribute([read], ["hbf"], model.tensors, [])
    assert sum(share.nbytes for share in shares.tensors.values()) == model.size


def _model_seeds() -> list[bytes]:
    sound = anygguf.packed(anygguf.MODEL)
    small = presets.parse("small", _preset_text(edits([])).decode())
    path = scratch() / "small.gguf"
    synth.write(small, path)
    return [sound, path.read_bytes()[:4096], edits([]), edits([(2, 12), (7, 9)])]


_PRESET = {
    "about": "a small one",
    "architecture": "qwen2",
    "layers": 1,
    "embedding": 256,
    "heads": 4,
    "kv_heads": 2,
    "ffn": 256,
    "vocabulary": 8,
    "context": 64,
    "rope_freq_base": 10000.0,
    "attention_bias": True,
    "experts": 2,
    "experts_used": 1,
}
_MAX_WRITTEN = 2 << 20


def preset(data: bytes) -> None:
    """A preset's TOML; if it is a small model, it is written and read back."""
    text = _preset_text(data).decode(errors="replace")
    known = accepted(presets.parse, "fuzzed", text)
    if known is None or synth.size_of(known) > _MAX_WRITTEN:
        return
    path = scratch() / "synthetic.gguf"
    synth.write(known, path)
    model = gguf.read(path)
    assert model.tensor_bytes == synth.size_of(known)
    assert kv.bytes_per_token(model) > 0


def _preset_text(data: bytes) -> bytes:
    return text_of(_PRESET, data, toml)


TARGETS = (
    Target("gguf", model_file, _model_seeds),
    Target("preset", preset, with_edits(lambda: toml(_PRESET).encode())),
)
