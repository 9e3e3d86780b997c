"""A llama-server's context saved to and restored from kv/, against the device's prediction, and from how many tokens on
reading it back is faster than prefilling it again.

For each tier and each length: the prompt is prefilled, its slot saved, erased and restored, with an unmodified
llama-server whose --slot-save-path is MOUNT/kv. The weights are in memory. Before, the same on an unthrottled mount,
recorded: the requests that llama-server and the kernel make, and what they take themselves. Predicted: these requests on
the device in virtual time, with the same think times (as `hbf trace replay`). Prints JSON; `break_even` says from how
many tokens on restoring is faster than prefilling, measured and predicted, and with the saving before it.

    tools/bench slots --model smollm2-135m
    tools/bench slots --tiers 100 --tokens 256,512 --repeats 1
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
from decode import model_path

from hbf_fuse.host import machine
from hbf_fuse.models import split
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.observe.bounds import DIRECT
from hbf_fuse.tier import Tier, TierSpec
from hbf_fuse.tier.virtual import replay
from hbf_fuse.traces.chains import Chains
from hbf_fuse.traces.trace import Read
from hbf_fuse.workload.program import SERVER

START_SECONDS, ASK_SECONDS = 120, 600
KV_BYTES = 2 << 30
FILE = "slot.bin"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="as for `hbf model get` [%(default)s]")
    parser.add_argument("--tiers", default="100,250,500,1000", help="MB/s with commas [%(default)s]")
    parser.add_argument("--lat", default=0.1, type=float, help="ms [%(default)s]")
    parser.add_argument("--tokens", default="64,128,256,512,1024,1536", help="lengths [%(default)s]")
    parser.add_argument("--repeats", default=3, type=int)
    parser.add_argument("-t", "--threads", default=2, type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lengths = [int(each) for each in options.tokens.split(",")]
    model = model_path(options.model)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hbf-bench-", dir="/dev/shm") as name:
        folder = Path(name)
        (folder / "mnt").mkdir()
        for spec in [TierSpec(), *(TierSpec(float(mbps), options.lat) for mbps in options.tiers.split(","))]:
            config = MountConfig(model, folder / "mnt", spec, kv_bytes=KV_BYTES)
            with (
                child.mounted(config) as mount,
                _serving(model, mount / "kv", folder, max(lengths), options.threads) as http,
            ):
                for tokens in lengths:
                    rows += [_cycle(http, spec, tokens, mount) for _ in range(options.repeats)]
            print(f"{spec} is done", file=sys.stderr, flush=True)
    points = [_point(rows, mbps, tokens) for mbps, tokens in _keys(rows)]
    curves = [_break_even(points, mbps) for mbps in dict.fromkeys(point["mbps"] for point in points)]
    described = {"model": model.name, "kv_bytes_per_token": _bytes_per_token(model), "lat_ms": options.lat}
    print(
        json.dumps(
            {
                **described,
                "environment": {**machine.facts(), **machine.now()},
                "points": points,
                "break_even": curves,
            },
            indent=1,
        )
    )
    for point in points:
        print(
            f"{point['mbps']:6g} MB/s {point['tokens']:5} tokens {point['bytes'] / 1e6:7.2f} MB: "
            f"prefill {point['prefill_seconds']:.3f}, save {point['save_seconds']:.3f} "
            f"({point['save_error_pct']:+.1f}%), restore {point['restore_seconds']:.4f} "
            f"({point['restore_error_pct']:+.1f}%), verdicts {point['verdicts']}",
            file=sys.stderr,
        )
    for curve in curves:
        print(curve, file=sys.stderr)


def _bytes_per_token(model: Path) -> int:
    from hbf_fuse.gguf import kv

    return kv.bytes_per_token(split.read_model(model))


@contextmanager
def _serving(model: Path, saved: Path, folder: Path, tokens: int, threads: int) -> Iterator[httpx.Client]:
    """A llama-server with one slot, over a socket of its own."""
    socket = folder / "server.sock"
    socket.unlink(missing_ok=True)
    line = [str(SERVER.find()), "-m", str(model), "--host", str(socket), "--slot-save-path", str(saved)]
    line += ["--ctx-size", str(tokens + 64), "--parallel", "1", "-t", str(threads), "--no-webui", "--offline"]
    line += ["--cache-ram", "0"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        transport = httpx.HTTPTransport(uds=str(socket))
        with httpx.Client(transport=transport, base_url="http://server", timeout=ASK_SECONDS) as http:
            _until_ready(http, server)
            yield http
    finally:
        server.terminate()
        server.wait()


def _until_ready(http: httpx.Client, server: "subprocess.Popen[bytes]") -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and server.poll() is None:
        try:
            if http.get("/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    sys.exit("bench slots: llama-server did not start")


def _cycle(http: httpx.Client, spec: TierSpec, tokens: int, mount: Path) -> dict[str, Any]:
    """Prefill, save, erase, restore, and one token more."""
    prompt = random.choices(range(100, 20_000), k=tokens)  # noqa: S311
    http.post("/slots/0", params={"action": "erase"}).raise_for_status()
    prefilled = _complete(http, prompt)
    kept = _slot(http, "save")
    http.post("/slots/0", params={"action": "erase"}).raise_for_status()
    back = _slot(http, "restore")
    after = _complete(http, prompt)
    file = mount / "kv" / FILE
    newest = [read for read in client.read_trace(mount).of_kv() if read.ino == file.stat().st_ino]
    size, staging = file.stat().st_size, client.read_stats(mount)["kv"]["staging"]
    file.unlink()
    return {
        "spec": spec,
        "tokens": tokens,
        "bytes": size,
        "prefill": prefilled["prompt_ms"] / 1e3,
        "save": kept["timings"]["save_ms"] / 1e3,
        "restore": back["timings"]["restore_ms"] / 1e3,
        "recomputed": after["prompt_n"],
        "verdict": staging["verdict"],
        "writes": [read._replace(way=DIRECT) for read in newest if read.writes],
        "reads": [read for read in newest if not read.writes],
    }


def _slot(http: httpx.Client, action: str) -> dict[str, Any]:
    said = http.post("/slots/0", params={"action": action}, json={"filename": FILE})
    said.raise_for_status()
    found: dict[str, Any] = said.json()
    return found


def _complete(http: httpx.Client, prompt: list[int]) -> dict[str, Any]:
    asked = {"prompt": prompt, "n_predict": 1, "id_slot": 0, "cache_prompt": True}
    said = http.post("/completion", json=asked)
    said.raise_for_status()
    found: dict[str, Any] = said.json()["timings"]
    return found


def _keys(rows: list[dict[str, Any]]) -> list[tuple[float, int]]:
    return list(
        dict.fromkeys((row["spec"].bandwidth_mbps, row["tokens"]) for row in rows if row["spec"].throttled)
    )


def _point(rows: list[dict[str, Any]], mbps: float, tokens: int) -> dict[str, Any]:
    of_length = [row for row in rows if row["tokens"] == tokens]
    memory = [row for row in of_length if not row["spec"].throttled]
    here = [row for row in of_length if row["spec"].bandwidth_mbps == mbps]
    spec, nbytes = here[0]["spec"], here[0]["bytes"]
    save_model = statistics.median(predicted(row["writes"], row["save"], spec) for row in memory)
    restore_model = statistics.median(predicted(row["reads"], row["restore"], spec) for row in memory)
    restore, save = _median(here, "restore"), _median(here, "save")
    return {
        "mbps": mbps,
        "tokens": tokens,
        "bytes": nbytes,
        "prefill_seconds": _median(memory, "prefill"),
        "save_seconds": save,
        "save_model_seconds": save_model,
        "save_error_pct": (save / save_model - 1) * 100,
        "restore_seconds": restore,
        "restore_unthrottled_seconds": _median(memory, "restore"),
        "restore_model_seconds": restore_model,
        "restore_error_pct": (restore / restore_model - 1) * 100,
        "recomputed_tokens": max(row["recomputed"] for row in here),
        "verdicts": [row["verdict"] for row in here],
    }


def predicted(recorded: list[Read], seconds: float, spec: TierSpec) -> float:
    """What the whole took, with its requests on a tier instead of the recorded ones."""
    chains = Chains(recorded)
    spent_ns = max(read.done_ns for read in recorded) - chains.start_ns
    return seconds + float(max(replay(chains.requests(), Tier(spec))) - spent_ns) / 1e9


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(row[key] for row in rows))


def _break_even(points: list[dict[str, Any]], mbps: float) -> dict[str, Any]:
    of_tier = sorted((point for point in points if point["mbps"] == mbps), key=lambda point: point["tokens"])
    return {
        "mbps": mbps,
        "measured_tokens": _crossing(of_tier, "restore_seconds"),
        "predicted_tokens": _crossing(of_tier, "restore_model_seconds"),
        "with_save_tokens": _crossing(of_tier, "restore_seconds", "save_seconds"),
    }


def _crossing(points: list[dict[str, Any]], *keys: str) -> float | str:
    """From how many tokens on reading takes less than prefilling, interpolated between lengths."""
    gains = [(p["tokens"], p["prefill_seconds"] - sum(p[key] for key in keys)) for p in points]
    if gains[0][1] >= 0:
        return f"below {gains[0][0]}"
    for (tokens, gain), (more, next_gain) in pairwise(gains):
        if next_gain >= 0:
            return float(round(tokens + (more - tokens) * -gain / (next_gain - gain)))
    return f"above {gains[-1][0]}"


if __name__ == "__main__":
    os.umask(0o077)
    main()
