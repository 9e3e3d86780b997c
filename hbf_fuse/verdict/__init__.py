"""Whether a figure can be trusted: evidence, rules, words."""

from hbf_fuse.verdict.evidence import Evidence
from hbf_fuse.verdict.rules import AGREES, DECODE_TOLERANCE_PCT, OFF, UNSURE, Verdict, judge, tolerance_pct

__all__ = [
    "AGREES",
    "DECODE_TOLERANCE_PCT",
    "OFF",
    "UNSURE",
    "Evidence",
    "Verdict",
    "judge",
    "tolerance_pct",
]
