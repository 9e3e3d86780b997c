"""What this machine has and lacks. facts.py collects, the others judge: functions from facts to lines."""

from hbf_fuse.doctor.facts import Facts, collect
from hbf_fuse.doctor.line import FAIL, OK, STATES, WARN, Line

__all__ = ["FAIL", "OK", "STATES", "WARN", "Facts", "Line", "collect", "examine"]


def examine(facts: Facts) -> list[Line]:
    """Every line of the output, in order."""
    from hbf_fuse.doctor import counting, places, readiness, serving

    judges = (*serving.JUDGES, *places.JUDGES, *counting.JUDGES, *readiness.JUDGES)
    return [line for judge in judges if (line := judge(facts))]
