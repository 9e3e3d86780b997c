"""First token from the tier, and what a batch buys: llama-server on mounts. Writes docs/serving.md.

Cold starts of real models over a grid of tiers; decode of 1 to 8 users with half of the weights in the tier; a
mixture of experts with its experts in the tier; and whether the output is the same as from the file.

    tools/bench serving                                    all of it, 3 repeats
    tools/bench serving --repeats 1 --parts output,cold    some of it, quickly
    tools/bench serving --only-page                        writes the page from what is there
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from decode import PINNED, model_path
from pages import bullets, mark

from hbf_fuse.engine import MEMORY
from hbf_fuse.fs.placement import Layout
from hbf_fuse.host import residency
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.report import levels, page, plots, serving, summary, tables
from hbf_fuse.report.summary import Series
from hbf_fuse.runs.results import Results
from hbf_fuse.tier import TierSpec
from hbf_fuse.workload import serve
from hbf_fuse.workload.llama import BenchOptions
from hbf_fuse.workload.program import SERVER
from hbf_fuse.workload.serve import ServeOptions

DOCS = Path(__file__).parent.parent.parent / "docs"
PARTS = ("cold", "batch", "experts", "output")
REAL = ("smollm2-135m", "gemma3-270m")
EXPERTS = "tiny-moe"
ONE_USER = ("--concurrency", "1", "--requests", "2", "--input-tokens", "64")
LEVELS = ("--concurrency", "1,2,4,8", "--requests", "8", "--input-tokens", "32", "--output-tokens", "16")
"""Short requests: with half of the weights in the tier, each token of one user takes up to half a second."""

PROMPTS, TOKENS = 20, 64
"""Of the comparison of outputs."""

_INTRO = """# First token from the tier

What a user waits for when llama-server starts with its weights in the tier, and what a batch makes of it. Measured with an unmodified
llama-server on mounts, and a closed loop of users ([definitions.md](definitions.md#the-workload-serve) says what each figure means).

    tools/llama-bench-build --server          # once, 15 minutes on 2 cores
    pip install 'hbf-fuse[serve]'             # httpx
    hbf bench MODEL.gguf --workload serve --mbps 250
    hbf sweep MODEL.gguf --workload serve --mode stream --resident 50% --mbps 250,500 --lat 0 --concurrency 1,2,4,8

The load comes from 200 lines of our own (`hbf_fuse/workload/load.py`) over httpx, which installs with six packages in 3 MB. Looked at
before: guidellm 0.8.1 (97 packages, 6 GB), llama-benchy 0.4.0 (49 packages, 325 MB), aiperf (needs transformers and pandas),
inference-perf (not on this index), perftok 0.1.2 (26 packages, 50 MB: the only one under 100 MB, but it downloads an encoding from the net
when it is imported, has no seed, asks for no fixed output and prints aggregates only). llama-server listens on a UNIX socket in a private
folder, so no port can be taken and nobody else can send requests.

Weights are shared by a batch: each step reads them once, whoever is served. With weights in the tier a step takes
compute(batch) + bytes / bandwidth, so tokens/s are batch / (compute(batch) + bytes / bandwidth), and grow with the
batch until compute takes as long. compute(batch) is measured with the same load and the model in memory.

"""

_COLD = """The prediction is the start from memory (the median of three) and the time in which the tier carried bytes, by the
model. The tier's part is exact to `tier_error_pct`; it is `unsure` here because llama-server's threads wait for a CPU
on two cores. The rest is llama-server's own, and varies: from memory the same start takes 20 to 40% more in one cell
than in another on this machine.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("results/serving"), help="[%(default)s]")
    parser.add_argument("--parts", default=",".join(PARTS), help="[%(default)s]")
    parser.add_argument("--models", default=",".join(REAL), help="for cold, batch and output [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--only-page", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if not options.only_page:
        _measure(options.output, options.parts.split(","), options.models.split(","), options.repeats)
    (DOCS / "serving.md").write_text(_page(options.output))


def _measure(output: Path, parts: Sequence[str], models: Sequence[str], repeats: int) -> None:
    # One thread: on two cores the other one is for the mount's server and llama-server's own threads.
    times = ["--repeats", str(repeats), "-t", "1", "--workload", "serve"]
    for name in models:
        if "cold" in parts:
            cold = ["--mode", "mmap", "--mbps", "250,500,1000", "--lat", "0,1"]
            _sweep(name, output / f"cold-{name}", [*times, *cold, *ONE_USER])
        if "batch" in parts:
            stream = ["--mode", "stream", "--resident", "50%", "--mbps", "250,500", "--lat", "0"]
            _sweep(name, output / f"batch-{name}", [*times, *stream, *LEVELS])
        if "output" in parts:
            _compare(name, output)
    if "experts" in parts:
        place = ["--place", "_exps=hbf", "--place", ".*=dram", "--policy", "fifo", "--resident", "24M"]
        # Experts of 0.6 MB: more readahead would read their neighbours.
        place += ["--readahead", "64"]
        stream = ["--mode", "stream", "--mbps", "500", "--lat", "0", *place]
        _sweep(EXPERTS, output / "experts", [*times, *stream, *LEVELS])


def _sweep(model: str, folder: Path, arguments: list[str]) -> None:
    path = model_path(model)
    line = [sys.executable, "-P", "-m", "hbf_fuse", "sweep", "-m", str(path), "-o", str(folder), *arguments]
    if subprocess.run(line, check=False, stdout=subprocess.DEVNULL, env={**os.environ, **PINNED}).returncode:
        sys.exit(f"the sweep of {model} in {folder} failed; the same command goes on with it")


def _compare(name: str, output: Path) -> None:
    """Greedy output of the file, through a mount, and through one with a budget, request by request."""
    path = model_path(name)
    vocabulary = 30_000
    request = BenchOptions(n_prompt=32, n_gen=TOKENS, threads=2, repack=0)
    load = ServeOptions(concurrency=(1,), requests=PROMPTS)
    found: dict[str, list[list[int]]] = {}
    residency.fill(path)
    with tempfile.TemporaryDirectory(prefix="hbf-serving-") as folder:
        for where, model in _places(path, Path(folder)):
            with model as (file, environment):
                run = serve.run(
                    SERVER.find(),
                    file,
                    request,
                    load,
                    vocabulary,
                    Path(folder),
                    1200,
                    environment=environment,
                )
            ordered = sorted(run.levels[0].answers, key=lambda answer: answer.number)
            found[where] = [answer.tokens for answer in ordered]
    told: dict[str, Any] = {"model": name, "prompts": PROMPTS, "tokens": TOKENS}
    for where, answers in found.items():
        told[where] = sum(ours == theirs for ours, theirs in zip(answers, found["file"], strict=True))
    print(json.dumps(told), flush=True)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"output-{name}.json").write_text(json.dumps(told) + "\n")


def _places(path: Path, folder: Path) -> Iterator[tuple[str, Any]]:
    mountpoint = folder / "mnt"
    mountpoint.mkdir()
    yield "file", _itself(path)
    yield "mount", _mounted(MountConfig(path, mountpoint, TierSpec(1000, 0)))
    layout = Layout(path.stat().st_size // 2)
    yield (
        "mount with a budget of 50%",
        _mounted(MountConfig(path, mountpoint, TierSpec(1000, 0), layout=layout)),
    )
    yield "memory engine", _mounted(MountConfig(path, mountpoint, TierSpec(5000, 0.02), engine=MEMORY))


@contextmanager
def _itself(path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    yield path, {}


@contextmanager
def _mounted(config: MountConfig) -> Iterator[tuple[Path, dict[str, str]]]:
    with child.mounted(config) as mount:
        yield mount / "model.gguf", client.reaching(mount)


def _page(output: Path) -> str:
    parts = [mark("serving") + _INTRO]
    for name in REAL:
        if (output / f"cold-{name}").is_dir():
            parts += [
                f"## {name}: cold starts\n",
                _COLD,
                *_series(output / f"cold-{name}", f"ttft-{name}", ["ttft"]),
            ]
        if (output / f"batch-{name}").is_dir():
            parts += [f"## {name}: half of the weights in the tier\n"]
            parts += _series(output / f"batch-{name}", f"serving-{name}", ["batch", "itl"])
    if (output / "experts").is_dir():
        parts += [f"## {EXPERTS}: attention in DRAM, experts in the tier\n"]
        parts += _series(output / "experts", "serving-experts", ["batch"])
    if told := [json.loads(file.read_text()) for file in sorted(output.glob("output-*.json"))]:
        parts += [
            "## The same output\n",
            f"{PROMPTS} prompts, {TOKENS} tokens each, greedy, one at a time. How many answers are the file's, token by\n"
            "token:\n",
            _outputs(told),
        ]
    folders = [each for each in sorted(output.glob("*")) if each.is_dir()]
    if not folders:
        return "\n".join(
            [*parts, "Nothing was measured yet: `tools/bench serving` writes the figures here.\n"]
        )
    parts += ["## Measured on\n", *bullets(page.environment(Results(folders[0]).all()))]
    parts += [
        "llama-server computed with one thread, so that the mount's server had the other core.\n",
        "Do it again: `tools/bench serving`.\n",
    ]
    return "\n".join(parts)


def _series(folder: Path, picture: str, wanted: Sequence[str]) -> list[str]:
    parts = list[str]()
    for each in summary.series_of(Results(folder).all()):
        points = [point for point in each.points if point.metrics]
        parts += [f"`{each.title}`\n", tables.table(each.columns, [point.row() for point in points])]
        parts += [tables.table(levels.columns(each.levels), each.levels)]
        parts += _drawn(each, picture, wanted)
        parts += bullets([*serving.meaning(points), *serving.checks(points)])
    return parts


def _drawn(series: Series, picture: str, wanted: Sequence[str]) -> Iterator[str]:
    for plot in plots.of_series(series):
        kind = plot.name.partition("-")[0]
        if kind in wanted:
            name = f"{picture}-{kind}.svg" if len(wanted) > 1 else f"{picture}.svg"
            (DOCS / name).write_text(plot.svg + "\n")
            yield f"![{plot.title}]({name})\n"


def _outputs(told: Sequence[dict[str, Any]]) -> str:
    rows = [{key: str(value) for key, value in each.items()} for each in told]
    return tables.table(tuple(rows[0]), rows)


if __name__ == "__main__":
    main()
