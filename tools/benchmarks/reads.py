"""Random reads and a mapped stream from this checkout's engines, other versions and the FUSE limit in C.

Every round mounts each server at each tier once, in a new order. On each mount fio reads at random, past the
page cache, with every block size and number of readers. Unthrottled and at 1000 MB/s, a mapping is then read with
a cold page cache. Prints JSON: the conditions, a cell for each combination (runs, medians, the model's MB/s) and
`checks`: the targets, and whether they were met. CPU is the server's, in cores. Needs fio, and root for the limit.
One tier of four servers takes 5 minutes with all cells and 5 rounds. --from merges runs of several tiers.

    tools/bench reads --limit ./fuse_limit --peer before=../hbf-fuse-v0 -o all.json
    tools/bench reads --tiers 1000,100us --bs 4k --numjobs 1,8 --rounds 3
    tools/bench reads --from part1.json part2.json --markdown docs/engines.md     the page, from several runs
"""

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import reads_page
from peers import Peer, compiled_modules, cpu_seconds, served
from readers import WAYS, make_source, read_rate

from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.tier import TierSpec
from hbf_fuse.tier.expect import closed_loop
from hbf_fuse.units import parse_size

PEERS = (Peer("compiled"), Peer("uncompiled", uncompiled=True), Peer("fusepy", engine="fusepy"))
STREAM_TIERS = ("unthrottled", "1000")
RAMP_SECONDS = 0.1
_TIER = re.compile(r"(\d+(?:\.\d+)?)(us|ms)?")
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100000))"

Key = tuple[str, str, str, int]
"""Peer, tier, block size ("mmap" for the stream), readers."""
Run = dict[str, float]


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        if options.files:
            document = reads_page.merged([json.loads(file.read_text()) for file in options.files])
            _write(document, options)
        else:
            _measure(options)
    except HbfError as error:
        sys.exit(f"bench_reads: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bs", default="4k,40k,128k,1M", type=_list(_size), help="block sizes with commas")
    parser.add_argument("--numjobs", default="1,4,8,64", type=_list(int), help="readers with commas")
    parser.add_argument(
        "--tiers",
        default="unthrottled,500,1000,2000,20us,100us,1ms",
        type=_list(_tier),
        help="MB/s, or latency alone",
    )
    parser.add_argument("--peers", type=_list(str), help="only these, with commas")
    parser.add_argument("--limit", type=Path, metavar="BINARY", help="the FUSE limit, a program in C")
    parser.add_argument("--peer", action="append", default=[], type=_peer, metavar="NAME=CHECKOUT")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--runtime", default=0.5, type=float, help="seconds of each cell")
    parser.add_argument("--size", default="256M", type=parse_size)
    parser.add_argument("--busy", default=0, type=int, metavar="N", help="keep N cores busy meanwhile")
    parser.add_argument("--from", dest="files", nargs="+", type=Path, help="measure nothing; merge these")
    parser.add_argument("-o", "--output", type=Path, help="JSON; else on stdout")
    parser.add_argument("--markdown", type=Path, help="write the tables between this page's marks")
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> None:
    """All rounds. Finished measurements are written even if something fails."""
    fio = shutil.which("fio")
    if not fio:
        raise HbfError("there is no fio; install it")
    limit = [Peer("limit", limit=options.limit.absolute())] if options.limit else []
    peers = [p for p in (*limit, *PEERS, *options.peer) if not options.peers or p.name in options.peers]
    conditions: dict[str, Any] = {
        **machine.facts(),
        **machine.now(),
        "fio": subprocess.check_output([fio, "--version"], text=True).strip(),
        "rounds": options.rounds,
        "runtime": options.runtime,
        "size": options.size,
        "busy": options.busy,
        "complete": False,
        "peers": {peer.name: {"commit": peer.commit()} for peer in peers},
    }
    runs: dict[Key, list[Run]] = {}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
    turns = [(peer, tier) for peer in peers for tier in options.tiers]
    try:
        with tempfile.TemporaryDirectory(prefix="hbf-bench-", dir=memory) as name, _spinning(options.busy):
            folder = Path(name)
            source = make_source(folder, options.size)
            (folder / "mnt").mkdir()
            for number in range(options.rounds):
                for place, (peer, tier) in enumerate(random.sample(turns, len(turns))):
                    begin = time.monotonic()
                    modules = _mount(peer, tier, folder, source, options, runs)
                    conditions["peers"][peer.name]["compiled_modules"] = modules
                    _say(
                        f"round {number + 1}/{options.rounds}, mount {place + 1}/{len(turns)}: {peer.name} at "
                        f"{tier}, {time.monotonic() - begin:.1f} s"
                    )
                    if peer.name == "compiled" and not modules:
                        _say("no compiled module is loaded: these figures are the uncompiled engine's")
        conditions["complete"] = True
    finally:
        cells = [_cell(key, measured, options.busy) for key, measured in runs.items()]
        _write(reads_page.merged([{"conditions": [conditions], "cells": cells}]), options)


def _mount(
    peer: Peer,
    tier: str,
    folder: Path,
    source: Path,
    options: argparse.Namespace,
    runs: dict[Key, list[Run]],
) -> int:
    """One mount with all its cells, in a new order. Returns the number of compiled modules in its server."""
    cells = [(bs, readers) for bs in options.bs for readers in options.numjobs]
    with served(peer, source, folder / "mnt", spec_of(tier)) as server:
        path = folder / "mnt/model.gguf"
        for bs, readers in random.sample(cells, len(cells)):
            log = folder / "fio" if spec_of(tier).latency_ms else None
            run = _fio(path, bs, readers, options.runtime, server, log)
            runs.setdefault((peer.name, tier, bs, readers), []).append(run)
        if tier in STREAM_TIERS:
            before = cpu_seconds(server)
            rate = read_rate(path, WAYS[0])
            seconds = options.size / rate / 1e6
            run = {"mbps": rate, "cpu": (cpu_seconds(server) - before) / seconds}
            runs.setdefault((peer.name, tier, "mmap", 1), []).append(run)
        return compiled_modules(server)


def _fio(path: Path, bs: str, readers: int, runtime: float, server: int, log: Path | None) -> Run:
    """One cell. With a log, percentiles come from every read; fio's own are uncertain by 0.8%."""
    line = ["fio", "--name=reads", f"--filename={path}", "--ioengine=psync", "--direct=1", "--rw=randread"]
    line += ["--thread=1", "--norandommap", "--group_reporting", "--time_based", "--output-format=json"]
    line += ["--clocksource=clock_gettime", f"--bs={bs}", f"--numjobs={readers}"]
    line += [f"--runtime={runtime * 1000:.0f}ms", f"--ramp_time={RAMP_SECONDS * 1000:.0f}ms"]
    if log:
        line += [f"--write_lat_log={log}", "--per_job_logs=0", "--log_entries=50000"]
    before = cpu_seconds(server)
    said = subprocess.run(line, capture_output=True, text=True, check=False, timeout=runtime + 60)
    cpu = cpu_seconds(server) - before
    if said.returncode:
        raise HbfError(f"fio failed: {said.stderr.strip()}")
    read = json.loads(said.stdout[said.stdout.index("{") :])["jobs"][0]["read"]
    percentiles = {share: read["clat_ns"]["percentile"][f"{share}.000000"] / 1000 for share in (50, 99)}
    if log:
        lines = Path(f"{log}_clat.log").read_text().splitlines()
        waits = sorted(int(line.split(",")[1]) for line in lines)
        percentiles = {share: waits[len(waits) * share // 100] / 1000 for share in percentiles}
        for kind in ("clat", "slat", "lat"):
            Path(f"{log}_{kind}.log").unlink()
    return {
        "mbps": read["bw_bytes"] / 1e6,
        "reads_per_s": read["iops"],
        "p50_us": percentiles[50],
        "p99_us": percentiles[99],
        "cpu": cpu / (RAMP_SECONDS + read["runtime"] / 1000),
    }


def _cell(key: Key, runs: list[Run], busy: int) -> dict[str, Any]:
    peer, tier, bs, readers = key
    spec = spec_of(tier)
    model = spec.bandwidth_mbps if bs == "mmap" else closed_loop(spec, parse_size(bs), readers)
    names = {"peer": peer, "tier": tier, "bs": bs, "numjobs": readers, "busy": busy, "model_mbps": model}
    return {**names, "runs": [{name: round(value, 4) for name, value in run.items()} for run in runs]}


def spec_of(tier: str) -> TierSpec:
    """The device of a tier's name: "unthrottled", "500" (MB/s), "20us" or "1ms" (latency alone)."""
    match = _TIER.fullmatch(tier)
    if not match:
        return TierSpec()
    value = float(match[1])
    if not match[2]:
        return TierSpec(value)
    return TierSpec(None, value / 1000 if match[2] == "us" else value)


def _write(document: dict[str, Any], options: argparse.Namespace) -> None:
    text = json.dumps(document, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    elif not (options.files and options.markdown):
        sys.stdout.write(text)
    if options.markdown:
        reads_page.update(options.markdown, document)


@contextmanager
def _spinning(count: int) -> Iterator[None]:
    """Keep cores busy. These processes end with this one, however it ends."""
    line = [sys.executable, "-I", "-c", _SPIN]
    spinners = [subprocess.Popen(line, start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def _list(convert: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """For argparse: values with commas."""
    return lambda text: [convert(part.strip()) for part in text.split(",")]


def _size(text: str) -> str:
    """A block size in the form of cell names: 4k, 1M."""
    nbytes = parse_size(text)
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if nbytes % unit == 0:
            return f"{nbytes // unit}{name}"
    return str(nbytes)


def _tier(text: str) -> str:
    if text != "unthrottled" and not _TIER.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a tier; write unthrottled, 500, 20us or 1ms")
    return text


def _peer(text: str) -> Peer:
    name, _, checkout = text.partition("=")
    if not (Path(checkout) / "pyproject.toml").exists():
        raise argparse.ArgumentTypeError(f"{checkout!r} is not a checkout of hbf-fuse")
    return Peer(name, Path(checkout).absolute())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
