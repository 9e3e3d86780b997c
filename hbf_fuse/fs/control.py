"""Messages to a live mount: JSON with the names of the command line, such as {"mbps": 250, "lat": 1}."""

from typing import Any

from hbf_fuse import documents
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.spec import NAMES

MAX_BYTES = 4096
"""A message is one write; none needs more."""


def applied(message: bytes, spec: TierSpec) -> TierSpec:
    """The tier after a message: what it does not name stays. mbps null is unthrottled.

    Raises ValueError for anything but a JSON object of known names and values that a tier can have.
    """
    if len(message) > MAX_BYTES:
        raise ValueError(f"a control message has at most {MAX_BYTES} bytes")
    try:
        wanted = documents.parse_json(message)
    except ValueError as error:
        raise ValueError("a control message is a JSON object") from error
    if not isinstance(wanted, dict) or not wanted:
        raise ValueError("a control message is a JSON object that names something")
    unknown = sorted(set(wanted) - set(NAMES))
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known: {', '.join(NAMES)}")
    return spec.changed(wanted)


def current(spec: TierSpec) -> dict[str, Any]:
    """A tier under the names of messages."""
    return {name: getattr(spec, field) for name, field in NAMES.items()}
