"""Control messages to a live mount: JSON with the command line's names, such as {"mbps": 250, "lat": 1}.

A reader may also name what it does from now on: {"phase": "decode"}.
"""

from typing import Any

from hbf_fuse import documents
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.spec import NAMES

MAX_BYTES = 4096
"""A message is one write; no message needs more."""


PHASE = "phase"


def parsed(message: bytes) -> dict[str, Any]:
    """What a message says. ValueError for anything but a JSON object of known names."""
    if len(message) > MAX_BYTES:
        raise ValueError(f"a control message has at most {MAX_BYTES} bytes")
    try:
        wanted = documents.parse_json(message)
    except ValueError as error:
        raise ValueError("a control message is a JSON object") from error
    if not isinstance(wanted, dict) or not wanted:
        raise ValueError("a control message is a JSON object that names something")
    unknown = sorted(set(wanted) - {*NAMES, PHASE})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join((*NAMES, PHASE))}")
    if not isinstance(wanted.get(PHASE, ""), str):
        raise ValueError("a phase is a name")
    return wanted


def applied(message: bytes, spec: TierSpec) -> TierSpec:
    """The tier after a message. What the message does not name stays. mbps null is unthrottled.

    Raises ValueError as `parsed`, and for values that a tier cannot have.
    """
    wanted = parsed(message)
    wanted.pop(PHASE, None)
    return spec.changed(wanted) if wanted else spec


def current(spec: TierSpec) -> dict[str, Any]:
    """A tier as JSON, under the names that messages use."""
    return {name: getattr(spec, field) for name, field in NAMES.items()}
