"""`hbf trace replay --resident`: how much DRAM in front of the tier."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from hbf_fuse.cli.common import Json, console, print_json, tell
from hbf_fuse.cli.paths import found
from hbf_fuse.cli.spreading import Spread
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.gguf import GgufFile
    from hbf_fuse.runs.run import Finished
    from hbf_fuse.tier import TierSpec
    from hbf_fuse.traces.attribution import Phase
    from hbf_fuse.traces.dram import Curve, Point
    from hbf_fuse.traces.trace import Trace

MOST_EXPERTS = 12
SMALL_SHARE = 0.005
"""Of what a token uses: a smaller group of tensors gets no column."""

_SHORT = {"dense_ffn": "ffn", "attention": "attn", "embedding": "embd", "output_and_norms": "output"}
MOST_OF = 0.9
"""Of a token's active weights: a recording that read less of them does not show all uses."""

DEFAULT_POLICIES = "pin,opt"


@dataclass(frozen=True)
class DramOptions:
    """Budgets of DRAM in front of the tier, and what stays in it."""

    resident: Annotated[
        str | None,
        typer.Option(
            "--resident", help="DRAM in front of the tier, with commas: shares of the model as 25%, or 256M."
        ),
    ] = None
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="With commas: lru, fifo, pin, lfu, opt (Belady: no policy reads less). \\[default: pin,opt]",
        ),
    ] = None
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="With --resident: the GGUF. \\[default: what was served]", parser=found
        ),
    ] = None

    def given(self) -> bool:
        """Whether a curve is wanted. Wrong usage if it is only said how."""
        if self.resident is None and (self.policy or self.model):
            raise typer.BadParameter("--policy and --model are of --resident")
        return self.resident is not None

    def show(
        self,
        trace: "Trace",
        run: "Finished | None",
        phases: "Sequence[Phase]",
        spec: "TierSpec | None",
        spread: Spread,
        as_json: Json,
    ) -> None:
        """Print the curve of a recorded run. spec: another tier than the recorded ones."""
        from hbf_fuse.gguf import weights
        from hbf_fuse.tier import TierSpec
        from hbf_fuse.traces import attribution
        from hbf_fuse.traces.dram import Curve, Recording

        if run is None:
            raise HbfError("--resident needs to know when tokens were decoded", "name the run with --run")
        model = model_of(trace, self.model)
        decodes = [phase for phase in phases if phase.name == "decode"]
        if not decodes:
            raise HbfError("the run decoded nothing", "record one with -n 16")
        specs = [TierSpec.from_dict(fields) for fields in trace.header["tiers"].values()]
        compute_tg = run.metrics.compute_tg
        recording = Recording(
            attribution.of_model(trace, model),
            model.tensors,
            decodes[0],
            [spec or each for each in specs],
            1 / compute_tg if compute_tg else None,
        )
        if compute_tg is None:
            tell("the run has no compute_tg, so there are no tokens/s: mode stream measures it")
        if len(decodes) > 1:
            tell("only the first decode of the run counts")
        wanted = self._wanted(model.size)
        curve = Curve(recording, weights.groups(model))
        points = spread.over(curve.point, wanted, "replaying")
        _require_all_uses(points[0].used, weights.active_bytes(model))
        if as_json:
            rows = [_row(curve, point) for point in points]
            print_json({"tiers": [str(each) for each in recording.specs], "points": rows})
            return
        tell("worked out from one recording; `tools/bench dram` holds it against real runs")
        _print(curve, points)

    def _wanted(self, model_bytes: int) -> list[tuple[str, int]]:
        """Every budget with every policy, or wrong usage."""
        from hbf_fuse.traces.dram import POLICIES

        policies = [name.strip() for name in (self.policy or DEFAULT_POLICIES).split(",")]
        for name in policies:
            if name not in POLICIES:
                raise typer.BadParameter(f"unknown policy {name!r}; there are: {', '.join(POLICIES)}")
        sizes = [resident_bytes(text.strip(), model_bytes) for text in (self.resident or "").split(",")]
        return [(name, size) for size in sizes for name in policies]


def resident_bytes(text: str, model_bytes: int) -> int:
    """A budget of DRAM that a mount takes, or wrong usage."""
    from hbf_fuse.pacing.resident import MIN_BYTES
    from hbf_fuse.sweep.grid import budget

    try:
        size = budget(text, model_bytes)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if size < MIN_BYTES:
        raise typer.BadParameter(f"{text} is less than a mount takes, {format_size(MIN_BYTES)}")
    return size


def _require_all_uses(used: float, active: int) -> None:
    """HbfError if a recorded token read less than it uses: DRAM held the rest, and nobody saw its uses."""
    if used < MOST_OF * active:
        raise HbfError(
            f"a recorded token read {used / 1e6:.0f} MB of the {active / 1e6:.0f} MB that it uses: the rest "
            "was in DRAM",
            "record with `--resident 20M --policy fifo`",
        )


def model_of(trace: "Trace", model: Path | None) -> "GgufFile":
    """The model that a trace is of: what was served, unless another is named. HbfError if it is not there."""
    from hbf_fuse.models import choice, split

    source = choice.file_of(model) if model else Path(str(trace.header.get("source", "")))
    if not source.is_file():
        raise HbfError(f"the model {source} is not there", "name it with -m")
    return split.read_model(source)


def _row(curve: "Curve", point: "Point") -> dict[str, Any]:
    return {
        "policy": point.policy,
        "resident_bytes": point.resident_bytes,
        "bytes_per_token": point.read,
        "hit_share": 1 - point.read / point.used if point.used else None,
        "tg": point.tg,
        "groups": {
            name: {"bytes_per_token": read, "used_bytes_per_token": used}
            for name, (read, used) in point.by_group.items()
        },
        "experts": [
            {
                "layer": expert[0],
                "expert": expert[1],
                "bytes_per_token": read,
                "used_bytes_per_token": used,
                "uses_per_token": used / curve.expert_bytes[expert],
            }
            for expert, (read, used) in point.by_expert.items()
        ],
    }


def _print(curve: "Curve", points: "Sequence[Point]") -> None:
    used_most = sorted(points[0].by_group.items(), key=lambda item: -item[1][1])
    groups = [name for name, (_, used) in used_most if used >= SMALL_SHARE * points[0].used]
    columns = [_SHORT.get(name, name) for name in groups]
    table = Table("DRAM", "policy", "MB/token", "tokens/s", *columns, box=box.SIMPLE)
    for point in points:
        shares = [point.by_group[name] for name in groups]
        table.add_row(
            format_size(point.resident_bytes),
            point.policy,
            f"{point.read / 1e6:.1f}",
            "-" if point.tg is None else f"{point.tg:.3g}",
            *(f"{1 - read / used:.0%}" if used else "-" for read, used in shares),
        )
    screen = console()
    screen.print(table)
    screen.print("below a group of tensors: its share that was in DRAM when it was used")
    if points[0].by_expert:
        screen.print(_experts(curve, points[-1]))


def _experts(curve: "Curve", point: "Point") -> Table:
    """The experts that were used most."""
    shown = f"in DRAM: {point.policy}, {format_size(point.resident_bytes)}"
    table = Table("expert", "uses a token", shown, box=box.SIMPLE)
    uses = {expert: used / curve.expert_bytes[expert] for expert, (_, used) in point.by_expert.items()}
    for expert in sorted(uses, key=lambda each: -uses[each])[:MOST_EXPERTS]:
        read, used = point.by_expert[expert]
        table.add_row("{} expert {}".format(*expert), f"{uses[expert]:.2f}", f"{1 - read / used:.0%}")
    return table
