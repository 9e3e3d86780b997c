"""`hbf profile measure` and `hbf profile check`, where the truth is known and where it is not.

Known: mounts of three tiers, which the fit must give back; the disk of MODEL under io.max at two rates (needs root).
Unknown: that disk as it is. Of the disks, a mount of each fit is compared with the disk, and llama-bench cold from both.
Prints JSON.

    tools/bench real-disks                       14 minutes
    tools/bench real-disks --only mounts         4 minutes
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from decode import model_path

from hbf_fuse.host import machine
from hbf_fuse.mount import child
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

TRUTHS = (TierSpec(500, 1), TierSpec(300, 0.2), TierSpec(1000, 0.1))
KINDS = ("mounts", "limited", "disk")


def main() -> None:
    options = _options()
    model = model_path(options.model)
    found: dict[str, Any] = {"machine": machine.facts(), "measured": machine.now()}
    with tempfile.TemporaryDirectory(prefix="hbf-bench-") as name:
        folder = Path(name)
        if "mounts" in options.only:
            found["mounts"] = [_of_mount(model, spec, folder) for spec in TRUTHS]
        if "limited" in options.only:
            found["limited"] = [
                {"io_max": rate, **_of_disk(model, folder, "run", "--io-max", str(rate), "--")}
                for rate in options.io_max
            ]
        if "disk" in options.only:
            found["disk"] = _of_disk(model, folder)
    print(json.dumps(found, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="gemma3-270m", help="it lies on the disk [%(default)s]")
    parser.add_argument(
        "--only",
        type=_kinds,
        default=list(KINDS),
        help=f"of {', '.join(KINDS)}, with commas [all]",
    )
    parser.add_argument(
        "--io-max",
        type=lambda text: [float(rate) for rate in text.split(",")],
        default=[200.0, 500.0],
        help="in MB/s [200,500]",
    )
    return parser.parse_args()


def _kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := set(kinds) - set(KINDS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return kinds


def _of_mount(model: Path, spec: TierSpec, folder: Path) -> dict[str, Any]:
    (folder / "mnt").mkdir(exist_ok=True)
    with child.mounted(MountConfig(model, folder / "mnt", spec)) as mount:
        fit = _hbf("profile", "measure", str(mount / "model.gguf"), "--json", "--force")
    got = TierSpec.from_dict(fit["spec"])
    return {
        "true": spec.to_dict(),
        "fitted": fit["spec"],
        "form": fit["form"],
        "bandwidth_error_pct": ((got.bandwidth_mbps or 0) / (spec.bandwidth_mbps or 1) - 1) * 100,
        "latency_error_us": (got.mean_latency_ms - spec.latency_ms) * 1e3 + got.t_read_us,
        "within_5_pct_share": fit["well_share"],
    }


def _of_disk(model: Path, folder: Path, *under: str) -> dict[str, Any]:
    """The fit, and how a mount of it compares."""
    profile = folder / "disk.toml"
    again = [sys.executable, "-P", "-m", "hbf_fuse"] if under else []
    line = [*under, *again]
    fit = _hbf(*line, "profile", "measure", str(model), "-o", str(profile), "--force", "--json")
    check = _hbf(*line, "profile", "check", str(profile), str(model), "--json")
    return {"fit": fit, "check": check}


def _hbf(*line: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "hbf_fuse", *line]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


if __name__ == "__main__":
    main()
