"""Tries every fault of tests/faults many times and writes docs/reliability.md: faults and outcomes.

A fault has held if nothing hung, no byte was wrong, no traceback was printed and nothing was left behind. Each
test asserts all of it. The table also shows failed and skipped tests.

    tools/bench reliability --times 2 --cycles 20
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from pages import mark

from hbf_fuse.host import machine

ROOT = Path(__file__).parents[2]
CYCLES_TEST = "mounted_and_unmounted"
NOT_SHOWN = """\
- A reader killed in an O_DIRECT read under the fusepy engine ends when the tier has answered, not at once:
  libfuse 2 ignores interrupts. It is not among the faults.
- The wall clock jumps only for the server, through a preloaded library. The machine's own clock is not changed.
- Failing disks are a FUSE file system and a loop device over it. No device mapper target was used.
- A suspended server's readers wait until it continues, or until `hbf-umount --force`."""

SECONDS_A_TIME = 600
"""Longer than one round of all faults on a busy machine: a longer one hangs."""
SECONDS_A_CYCLE = 30


@dataclass
class Fault:
    """One test with its parameters, over all repetitions: how often it held, problems, measured seconds."""

    tried: int = 0
    held: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    measured: dict[str, float] = field(default_factory=dict)

    def outcome(self) -> str:
        if self.problems:
            return f"**failed {len(self.problems)} of {self.tried}**: {self.problems[0]}"
        if not self.tried:
            return f"not tried: {'; '.join(sorted(self.skipped))}"
        return "held"


def try_faults(report: Path, selection: str, times: int, cycles: int, seconds: float) -> None:
    """Run the tests, in the foreground: interrupts must reach them. Exits if they do not end."""
    line = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "tests/faults",
        "-q",
        f"--junitxml={report}",
        "-k",
        selection,
    ]
    line += ["-o", "junit_family=xunit1"]
    settings = {"HBF_FAULT_TIMES": str(times), "HBF_FAULT_CYCLES": str(cycles)}
    process = subprocess.Popen(line, cwd=ROOT, env={**os.environ, **settings}, stdout=sys.stderr)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        sys.exit(f"reliability: HANG: {' '.join(line)} did not end within {seconds:.0f} s")
    if code not in (0, 1) or not report.exists():
        sys.exit(f"reliability: the tests could not be run (pytest's exit code {code})")


def collect(report: Path) -> dict[tuple[str, str], Fault]:
    """Faults by name and parameters, from pytest's JUnit XML."""
    faults: dict[tuple[str, str], Fault] = {}
    # Written by our own pytest a moment ago.
    for case in ET.parse(report).iter("testcase"):  # noqa: S314
        name, _, parameters = case.attrib["name"].removesuffix("]").partition("[")
        key = (name.removeprefix("test_"), re.sub(r"^time\d+-?", "", parameters))
        fault = faults.setdefault(key, Fault())
        if (skipped := case.find("skipped")) is not None:
            fault.skipped.add(skipped.attrib.get("message", "no reason given"))
            continue
        measured = {node.attrib["name"]: float(node.attrib["value"]) for node in case.iter("property")}
        repeated = int(measured.pop("cycles", 1))
        fault.tried += repeated
        problem = next(
            (found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None
        )
        if problem is None:
            fault.held += repeated
        else:
            fault.problems.append((problem.attrib.get("message", "") or "failed").splitlines()[0][:150])
        for what, seconds in measured.items():
            fault.measured[what] = max(seconds, fault.measured.get(what, 0.0))
    return faults


def table(faults: dict[tuple[str, str], Fault]) -> list[str]:
    lines = ["| fault | with | tried | outcome | slowest |", "|---|---|---:|---|---|"]
    for (name, parameters), fault in faults.items():
        slowest = ", ".join(
            f"{seconds:.2f} s {what.removeprefix('seconds ')}" for what, seconds in fault.measured.items()
        )
        lines.append(
            f"| {name.replace('_', ' ')} | {parameters} | {fault.tried} | {fault.outcome()} | {slowest} |"
        )
    return lines


def page(faults: dict[tuple[str, str], Fault], command: str) -> str:
    """docs/reliability.md."""
    tried = sum(fault.tried for fault in faults.values())
    held = sum(fault.held for fault in faults.values())
    facts, now = machine.facts(), machine.now()
    return "\n".join(
        [
            mark("reliability") + "# Fault tests",
            "",
            f"Written by `{command}`. Every fault is a test in `tests/faults/`, on a real mount. To run one fault:",
            "`HBF_FAULT_TIMES=10 .venv/bin/python -m pytest tests/faults -k killed_under_load`.",
            "",
            f"Tried {tried} times in all, held {held} times. Held means: nothing hung, no wrong byte, no traceback, "
            "and no mount, watcher or cgroup left behind. A trial that breaks any of these counts as a failure.",
            "",
            *table(faults),
            "",
            "## What this does not show",
            "",
            NOT_SHOWN,
            "",
            "[load.md](load.md) has the results of long reading.",
            "",
            "## Conditions",
            "",
            f"{machine.described(facts)}, fusepy {version('fusepy')}, hbf-fuse {facts['hbf_fuse']}, "
            f"as {'root' if os.geteuid() == 0 else 'an ordinary user'}, {now['time']}, "
            f"load average {now['load_1min']:.1f}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", default=10, type=int, help="how often each fault is tried")
    parser.add_argument(
        "--cycles", default=1000, type=int, help="of mounting and unmounting, with each engine"
    )
    parser.add_argument("-o", "--output", default=ROOT / "docs/reliability.md", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hbf-reliability-") as folder:
        report, cycles = Path(folder) / "faults.xml", Path(folder) / "cycles.xml"
        try_faults(report, f"not {CYCLES_TEST}", options.times, 1, SECONDS_A_TIME * options.times)
        try_faults(cycles, CYCLES_TEST, 1, options.cycles, 120 + SECONDS_A_CYCLE * options.cycles)
        faults = {**collect(report), **collect(cycles)}
    command = f"tools/bench reliability --times {options.times} --cycles {options.cycles}"
    options.output.write_text(page(faults, command))
    print(options.output.read_text())
    sys.exit(1 if any(fault.problems for fault in faults.values()) else 0)


if __name__ == "__main__":
    main()
