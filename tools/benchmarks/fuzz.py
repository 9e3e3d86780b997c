"""Coverage-guided fuzzing of all code that reads files and messages of others: see docs/fuzzing.md.

Prints JSON per target. Corpus, findings and a line for every run are kept under ~/.cache/hbf/fuzz. --page copies these
lines into docs/fuzzing.jsonl, which holds the runs of every machine, and writes their totals into
docs/fuzzing.md. The exit code is 1 if there is a finding.

    tools/fuzz gguf --minutes 10
    tools/fuzz --all --minutes 60
    tools/fuzz gguf --again ~/.cache/hbf/fuzz/findings/gguf/crash-...
    tools/fuzz --page
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from fuzzing.promise import Target, check, memory  # noqa: E402
from fuzzing.targets import TARGETS  # noqa: E402

from hbf_fuse.models.places import cache_dir  # noqa: E402

PAGE = ROOT / "docs" / "fuzzing.md"
RUNS = "fuzzing.jsonl"
"""One run per line: in docs/ the runs of all machines, in the cache those of this machine."""

MAX_LEN = 16_384
TIMEOUT_SECONDS = 60
"""Wall time, for an input that never ends. A slow input is found by its CPU time."""

RSS_MB = 1024
_COVERAGE = re.compile(r"cov: (\d+) ft: (\d+)")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--all", action="store_true", help="every target, one after the other")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target (default: 1)")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run the target on this finding only")
    parser.add_argument("--page", action="store_true", help="copy the runs into docs/")
    options = parser.parse_args()
    names = list(TARGETS) if options.all else options.targets
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    if not names and not options.page:
        parser.error("name a target, or say --all or --page")
    if options.again:
        for name in names:
            check(TARGETS[name], options.again.read_bytes())
        return
    found = 0
    for name in names:
        result = fuzz(TARGETS[name], round(options.minutes * 60))
        with (home() / RUNS).open("a") as runs:
            runs.write(json.dumps(result) + "\n")
        found += len(result["findings"])
        print(json.dumps(result), flush=True)
    if options.page:
        write_page()
    sys.exit(found > 0)


def fuzz(target: Target, seconds: int) -> dict[str, Any]:
    """Fuzz one target for some time, or until it breaks."""
    corpus, findings = home() / "corpus" / target.name, home() / "findings" / target.name
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    before = set(findings.iterdir())
    with tempfile.TemporaryDirectory(prefix="hbf-fuzz-", dir=memory()) as scratch:
        line = [sys.executable, str(Path(__file__).with_name("fuzz_target.py")), target.name, str(corpus)]
        line += [f"-max_total_time={seconds}", f"-max_len={MAX_LEN}", f"-timeout={TIMEOUT_SECONDS}"]
        line += [f"-rss_limit_mb={RSS_MB}", f"-artifact_prefix={findings}/", "-print_final_stats=1"]
        with (Path(scratch) / "log").open("w+") as log:
            process = subprocess.Popen(
                line,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": scratch, "TMPDIR": scratch},
            )
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                process.kill()
                raise
            log.seek(0)
            said = log.read()
    new = sorted(str(path) for path in set(findings.iterdir()) - before)
    if status and not new:
        raise SystemExit(f"fuzz: {target.name} ended with {status}:\n{said[-3000:]}")
    coverage = _COVERAGE.findall(said) or [("0", "0")]
    executed = _EXECUTED.search(said)
    return {
        "target": target.name,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "executions": int(executed[1]) if executed else 0,
        "coverage": max(int(edges) for edges, _ in coverage),
        "features": max(int(features) for _, features in coverage),
        "corpus": len(list(corpus.iterdir())),
        "findings": new,
        **({"said": _traceback(said)} if new else {}),
    }


def home() -> Path:
    """Where corpus, findings and runs are kept."""
    return cache_dir() / "fuzz"


def write_page() -> None:
    """Write this machine's runs into docs/fuzzing.jsonl, and the totals into the table of docs/fuzzing.md."""
    kept, mine = PAGE.with_name(RUNS), home() / RUNS
    lines = [file.read_text().splitlines() for file in (kept, mine) if file.exists()]
    runs = list(dict.fromkeys(_published(line) for each in lines for line in each))
    kept.write_text("\n".join(runs) + "\n")
    table = "\n".join(totals([json.loads(run) for run in runs]))
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    PAGE.write_text(f"{before}{_BEGIN}\n\n{table}\n\n{_END}{after}")


def _published(line: str) -> str:
    """A run without this machine's paths, which are also in tracebacks."""
    run = json.loads(line)
    run.pop("said", None)
    return json.dumps({**run, "findings": [Path(finding).name for finding in run["findings"]]})


def totals(runs: list[dict[str, Any]]) -> list[str]:
    """All runs as a Markdown table: sums of CPU time and inputs; maxima of branches and corpus."""
    rows = [
        "| target | what it is given | CPU time | inputs | branches | corpus |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, target in TARGETS.items():
        about = (target.run.__doc__ or "").split("\n\n")[0].replace("\n", " ").strip()
        own = [run for run in runs if run["target"] == name]
        seconds, inputs = (sum(run[key] for run in own) for key in ("cpu_seconds", "executions"))
        branches, corpus = (max((run[key] for run in own), default=0) for key in ("coverage", "corpus"))
        rows.append(
            f"| {name} | {' '.join(about.split())} | {seconds / 60:.1f} min "
            f"| {inputs:,} | {branches:,} | {corpus:,} |"
        )
    return rows


def _traceback(said: str) -> str:
    _, _, after = said.partition("=== Uncaught Python exception: ===")
    return (after or said)[:3000].strip()


if __name__ == "__main__":
    main()
