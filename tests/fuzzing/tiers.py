"""Tiers as users write them: JSON, control messages, profiles, --tiers; and user settings."""

import functools
import json
import os
from importlib import resources
from typing import Any
from unittest.mock import patch

from fuzzing.edits import edits, text_of, toml, with_edits
from fuzzing.promise import Target, accepted, file_of, scratch
from hbf_fuse.calibrate import envelope
from hbf_fuse.cli import options as cli_options
from hbf_fuse.fs import control
from hbf_fuse.host import machine
from hbf_fuse.models import choice, places
from hbf_fuse.tier import Tier, TierSpec, expect, profiles

SLOW_SPEC = TierSpec(500, 1)

_SPEC = {**TierSpec(500, 1, "normal:0.1+tail:1e-4,2", 7, 8, 4096, 30.0, 4).to_dict(), "profile": "hbf-gen1"}
_MESSAGE = control.current(SLOW_SPEC)


def tier(data: bytes) -> None:
    """A tier as JSON, and a message to `.hbf/control`; an accepted tier must give deadlines."""
    told = accepted(control.applied, text_of(_MESSAGE, data, json.dumps), SLOW_SPEC)
    if told is not None:
        json.dumps(control.current(told))
        _drive(told)
    try:
        fields = json.loads(text_of(_SPEC, data, json.dumps))
    except (ValueError, RecursionError):
        return
    if isinstance(fields, dict) and (spec := accepted(profiles.tier_of, fields)) is not None:
        _drive(spec)


def _drive(spec: TierSpec) -> None:
    device = Tier(spec)
    for count in range(20):
        arrival = count * 1000
        assert device.reserve(arrival, count << 20, 1 << (count % 12)) >= arrival
    assert str(spec) and spec.mean_latency_ms >= 0
    assert TierSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    rate = expect.closed_loop(spec, 4096, 2, reads=20)
    assert rate is None or rate > 0


_PROFILE = {
    "about": "a device",
    "bandwidth_mbps": {"value": 500, "assumed": "because"},
    "latency_ms": {"value": 1, "sourced": "a paper"},
    "jitter": {"value": "normal:0.1", "assumed": "because"},
    "planes": {"value": 8, "assumed": "because"},
    "capacity_gb": {"value": 512, "assumed": "because"},
}
_TIERS = {"fast": {"bandwidth_mbps": 1000, "latency_ms": 0.1}, "gen1": {"profile": "hbf-gen1", "depth": 4}}


def tier_tables(data: bytes) -> None:
    """TOML that describes tiers: a profile, and a file for --tiers."""
    text = text_of(_PROFILE, data, toml).decode(errors="replace")
    profile = accepted(profiles.parse, "fuzzed", text)
    if profile is not None:
        _drive(profile.spec())
    tables = accepted(cli_options.tier_tables, file_of("tiers.toml", text_of(_TIERS, data, toml)))
    for table in (tables or {}).values():
        if (spec := accepted(profiles.tier_of, table)) is not None:
            _drive(spec)


def _tier_table_seeds() -> list[bytes]:
    real = [resources.files(profiles.__name__) / f"{name}.toml" for name in ("hbf-gen1", "emmc")]
    return [edits([]), toml(_TIERS).encode(), *(file.read_bytes() for file in real)]


def settings(data: bytes) -> None:
    """The envelope of this machine, and config.toml."""
    (scratch() / "hbf").mkdir(exist_ok=True)
    with patch.dict(os.environ, XDG_CACHE_HOME=str(scratch()), XDG_CONFIG_HOME=str(scratch())):
        envelope.path().write_bytes(text_of(_envelope(), data, json.dumps))
        known, why = envelope.load()
        assert known is None or not why
        if known is not None:
            for engine in ("kernel", "fusepy"):
                envelope.doubt(SLOW_SPEC, known, engine)
        places.config_file().write_bytes(text_of({"model": "~/model.gguf"}, data, toml))
        accepted(choice._configured)


@functools.cache
def _envelope() -> dict[str, Any]:
    cells = [
        {"engine": "kernel", "mbps": 1000, "valid": True},
        {"engine": "kernel", "mbps": None, "valid": False},
    ]
    engines = {"kernel": {"ceiling_mbps": 3000.0}, "fusepy": {"ceiling_mbps": 300.0}}
    return {"machine": machine.facts(), "engines": engines, "cells": cells}


TARGETS = (
    Target(
        "tier", tier, with_edits(lambda: json.dumps(_SPEC).encode(), lambda: json.dumps(_MESSAGE).encode())
    ),
    Target("tiers", tier_tables, _tier_table_seeds),
    Target(
        "settings", settings, with_edits(lambda: json.dumps(_envelope()).encode(), lambda: b'model = "~/x"\n')
    ),
)
