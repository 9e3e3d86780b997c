"""llama-bench on the mount compared with llama-bench on the file itself, after the weights are loaded.

Interleaved runs, each a separate process with llama-bench's warm-up. Prints JSON: medians of pp and tg
and their ratios. A mount must not cost speed after loading.

    tools/bench llama-speed --rounds 5
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

from hbf_fuse.host import machine
from hbf_fuse.models.choice import DEFAULT_PRESET, preset_model
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload.program import BENCH


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", type=Path)
    parser.add_argument("-p", "--n-prompt", default=256, type=int)
    parser.add_argument("-n", "--n-gen", default=64, type=int)
    parser.add_argument("--rounds", default=5, type=int)
    options = parser.parse_args()
    model = options.model or preset_model(DEFAULT_PRESET, lambda message: None)
    places = ["file", "mount"]
    rates: dict[tuple[str, str], list[float]] = {
        (place, kind): [] for place in places for kind in ("pp", "tg")
    }
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as folder:
        point = Path(folder) / "mnt"
        point.mkdir()
        with child.mounted(MountConfig(model.absolute(), point, TierSpec(1000))) as mount:
            paths = {"file": model, "mount": mount / "model.gguf"}
            for _ in range(options.rounds):
                random.shuffle(places)
                for place in places:
                    for kind, rate in _rates(paths[place], options.n_prompt, options.n_gen).items():
                        rates[place, kind].append(rate)
    medians = {f"{place} {kind}": statistics.median(values) for (place, kind), values in rates.items()}
    print(
        json.dumps(
            {
                "tokens_per_second_median": medians,
                "mount_over_file": {
                    kind: medians[f"mount {kind}"] / medians[f"file {kind}"] for kind in ("pp", "tg")
                },
                "rounds": options.rounds,
                "environment": {**machine.facts(), **machine.now()},
            },
            indent=1,
        )
    )


def _rates(model: Path, n_prompt: int, n_gen: int) -> dict[str, float]:
    command = [
        str(BENCH.find()),
        "-m",
        str(model),
        "-p",
        str(n_prompt),
        "-n",
        str(n_gen),
        "-r",
        "1",
        "-o",
        "jsonl",
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    records = [json.loads(line) for line in said.splitlines()]
    return {"pp" if record["n_prompt"] else "tg": record["avg_ts"] for record in records}


if __name__ == "__main__":
    main()
