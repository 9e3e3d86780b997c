"""`hbf calibrate`: what this machine can emulate."""

import io
import os
import random
import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hbf_fuse.cli.common import Json, print_json, progress_of, tell
from hbf_fuse.cli.options import checked_engine
from hbf_fuse.cli.paths import found
from hbf_fuse.errors import HbfError
from hbf_fuse.folder import Folder


def calibrate(
    full: Annotated[
        bool, typer.Option("--full", help="The whole grid, both engines, 5 runs (about 15 minutes).")
    ] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            "--engine",
            metavar="NAME",
            help="Only this one: kernel, fusepy or memory. \\[default: kernel; with --full, fusepy, too]",
        ),
    ] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Runs of each point.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Where to store the envelope. \\[default: ~/.cache/hbf/envelope.json]",
            parser=found,
        ),
    ] = None,
    markdown: Annotated[
        Path | None,
        typer.Option("--markdown", help="Also write every cell as Markdown tables.", parser=found),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Also write the heat map as SVG.", parser=found)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure achieved against model over a grid of tiers: this machine's envelope.

    Example: [bold]hbf calibrate --full --markdown accuracy.md[/bold]

    Results of engines that are not measured now are kept.

    Ctrl-C keeps what was measured so far.
    """
    from hbf_fuse.calibrate import envelope
    from hbf_fuse.calibrate import plan as plans
    from hbf_fuse.calibrate.calibration import Calibration
    from hbf_fuse.documents import write_whole
    from hbf_fuse.report import accuracy

    plan = plans.named(checked_engine(engine) if engine else None, full)
    plan = replace(plan, runs=runs or plan.runs)
    target = output.absolute() if output else envelope.path()
    # Before a quarter of an hour is spent.
    Folder.at(target.parent)
    for file in filter(None, (target, markdown, svg)):
        _check_writable(file.absolute().parent)
    # In memory, so that nothing of that size is left behind by whoever is killed.
    with (
        tempfile.TemporaryDirectory(prefix="hbf-calibrate-") as folder,
        open(os.memfd_create("noise"), "wb") as noise,
    ):
        block = random.Random(1).randbytes(1 << 24)  # noqa: S311 - data, not a secret
        for _ in range(plans.SOURCE_BYTES // len(block)):
            noise.write(block)
        source = Path(f"/proc/self/fd/{noise.fileno()}")
        measured = Calibration(plan, source, Path(folder).resolve(), tell)
        # Ctrl-C keeps what there is.
        try:
            with suppress(KeyboardInterrupt), progress_of("calibrating", measured.steps) as advance:
                for _ in measured.run():
                    advance("calibrating")
        finally:
            document = measured.document()
            if document["cells"]:
                envelope.store(envelope.merged(document, target), target)
    if not document["cells"]:
        raise HbfError("interrupted before anything was measured", "nothing is stored")
    if not document["complete"]:
        tell("interrupted: what was measured so far is kept")
    if markdown:
        parts = [f"## {engine}\n\n{accuracy.markdown(document, engine)}" for engine in document["engines"]]
        write_whole(markdown, "\n".join(parts))
    maps = [accuracy.heat_map(document, engine) for engine in document["engines"]]
    if svg:
        write_whole(svg, _svg(maps))
    if as_json:
        print_json(document)
        return
    console = Console()
    for heat in maps:
        console.print(heat)
    for line in accuracy.findings(document):
        print(line)
    tell(f"stored as {target}")


def _svg(maps: list[Table]) -> str:
    """The heat maps as one picture that asks nobody for a font."""
    recorder = Console(record=True, width=100, file=io.StringIO())
    for heat in maps:
        recorder.print(heat)
    drawn = recorder.export_svg(title="hbf calibrate")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


def _check_writable(folder: Path) -> None:
    if not folder.is_dir():
        raise HbfError(f"{folder} is no directory", "make it with `mkdir -p`")
    Folder.at(folder).check_writable()
