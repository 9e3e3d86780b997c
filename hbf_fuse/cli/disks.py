"""`hbf profile measure` and `hbf profile check`: a real disk as a profile, and both side by side."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from hbf_fuse import compiled
from hbf_fuse.cli.common import Json, console, print_json, progress_of, tell
from hbf_fuse.cli.paths import found
from hbf_fuse.cli.profiles import SUFFIX, load
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from hbf_fuse.disks.cold import Load
    from hbf_fuse.disks.fitting import Fit
    from hbf_fuse.disks.measuring import Compared, Disturbed, Measured
    from hbf_fuse.tier import TierSpec

Rounds = Annotated[
    int,
    typer.Option(
        "--rounds", help="Runs of each job; two show whether the disk repeats itself.", min=2, max=100
    ),
]


def measure(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A file on the disk, as a GGUF; or the disk itself.", parser=found
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the profile, NAME.toml, for --profile.", parser=found),
    ] = None,
    rounds: Rounds = 2,
    force: Annotated[
        bool, typer.Option("--force", help="Write it even where it explains the disk badly.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a real disk, and fit a tier to it: bandwidth, latency, queue depth or planes, jitter.

    Reads past the page cache, of 4 KiB to 4 MiB, 1 to 32 in flight, sequential and random: a minute.

    Example: [bold]hbf profile measure model.gguf -o my-disk.toml[/bold]
    """
    from hbf_fuse import documents
    from hbf_fuse.disks import document, fitting, jobs, measuring, target

    if output is not None and output.suffix != SUFFIX:
        raise typer.BadParameter(f"a profile is a file NAME{SUFFIX}")
    with target.opened(path) as disk:
        steps = len(jobs.jobs(disk.size)) * rounds
        with progress_of("measuring", steps) as advance:
            # A line for each job would say little in a log.
            measured = measuring.measure(disk, rounds, lambda: advance("measuring"))
        fit = fitting.fit(measured.samples)
        text = document.profile(output.stem if output else "measured", disk, fit)
    _tell_about(fit, measured)
    if as_json:
        print_json(_document(fit, measured))
    else:
        _print_fit(fit, measured)
    if fit.is_bad and not force:
        raise HbfError(
            f"no tier explains this disk: the middle job is {fit.middle_pct:.0f}% off",
            "measure again when it is idle, with more --rounds; --force takes the profile all the same",
        )
    if output is not None:
        documents.write_whole(output, text)
        tell(f"stored as {output}; hbf-mount --profile {output} emulates it")
    elif not as_json:
        print(f"\n{text}", end="")


def check(
    profile: Annotated[str, typer.Argument(help="A file that `hbf profile measure` wrote, or a name.")],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A file on the disk, as a GGUF.", parser=found)
    ],
    rounds: Rounds = 2,
    as_json: Json = False,
) -> None:
    """Compare a real disk with a mount of its profile: llama-bench cold from both, then the same reads.

    Example: [bold]hbf profile check my-disk.toml model.gguf[/bold]
    """
    from hbf_fuse.disks import cold, jobs, measuring, target

    spec = load(profile).spec()
    if not path.is_file():
        raise HbfError(f"{path} is no file: a mount serves files", "name a file on that disk")
    with target.opened(path) as disk:
        try:
            loads = cold.loads(disk, spec, rounds)
        except HbfError as error:
            loads = []
            tell(f"without llama-bench: {error}")
        steps = len(jobs.jobs(disk.size)) * rounds
        with cold.mounted(disk, spec) as mounted, progress_of("comparing", steps) as advance:
            compared, disturbed = measuring.compare(disk, mounted, rounds, lambda: advance("comparing"))
    _tell_disturbed(disturbed)
    if as_json:
        print_json(_comparison(spec, compared, loads))
    else:
        _print_comparison(compared, loads)


def _tell_about(fit: "Fit", measured: "Measured") -> None:
    from hbf_fuse.disks.fitting import WELL_PCT

    _tell_disturbed(measured.disturbed)
    if why := compiled.why_not():
        tell(f"readers run uncompiled, which adds 10 to 20 us to each read: {why}")
    if fit.cpu_bound:
        tell(f"{fit.cpu_bound} jobs kept the machine's CPUs busy: they are not fitted")
    if measured.repeats_within_pct > WELL_PCT:
        tell(
            f"the disk itself is not steady: its runs of the same job differ by "
            f"{measured.repeats_within_pct:.0f}% in the middle"
        )


def _tell_disturbed(disturbed: "Disturbed") -> None:
    if disturbed.again:
        left = f"; {disturbed.left} are disturbed all the same" if disturbed.left else ""
        tell(f"others used the disk meanwhile: {disturbed.again} runs were made again{left}")


def _print_fit(fit: "Fit", measured: "Measured") -> None:
    from hbf_fuse.disks.fitting import WELL_PCT, medians
    from hbf_fuse.disks.jobs import DEPTHS

    table = Table("reads", "", *(f"x {depth}" for depth in DEPTHS), box=box.SIMPLE)
    rates = medians(measured.samples)
    for job in rates:
        if job.depth == 1:
            row = [other for other in rates if (other.size, other.random) == (job.size, job.random)]
            errors = [fit.errors_pct.get(each) for each in row]
            shown = ["CPU-bound" if error is None else f"{error:+.0f}%" for error in errors]
            figures = zip(row, shown, strict=True)
            table.add_row(job.label, job.order, *(f"{rates[each]:.0f} {error}" for each, error in figures))
    screen = console()
    screen.print(table)
    screen.print("MB/s at queue depths 1 to 32, and how far the fitted tier is off")
    screen.print(f"fitted: {fit.spec}, by {fit.form}")
    screen.print(
        f"the middle job is {fit.middle_pct:.1f}% off, and {fit.well_share:.0%} of the jobs are within "
        f"{WELL_PCT:g}%; runs of the same job differ by {measured.repeats_within_pct:.1f}%"
    )


def _document(fit: "Fit", measured: "Measured") -> dict[str, Any]:
    return {
        "spec": fit.spec.to_dict(),
        "form": fit.form,
        "middle_error_pct": fit.middle_pct,
        "well_share": fit.well_share,
        "repeats_within_pct": measured.repeats_within_pct,
        "disturbed": asdict(measured.disturbed),
        "jobs": [
            {
                "size": job.size,
                "depth": job.depth,
                "random": job.random,
                "mbps": [run.mbps for run in runs],
                "mean_us": [run.mean_ns / 1e3 for run in runs],
                "busy": [run.busy for run in runs],
                "error_pct": fit.errors_pct.get(job),
            }
            for job, runs in measured.samples.items()
        ],
    }


def _comparison(spec: "TierSpec", compared: "list[Compared]", loads: "list[Load]") -> dict[str, Any]:
    return {
        "spec": spec.to_dict(),
        "within_share": _within_share(compared),
        "within_share_of_steady": _within_share(_steady(compared)),
        "jobs": [
            {
                "size": each.job.size,
                "depth": each.job.depth,
                "random": each.job.random,
                "real_mbps": each.real_mbps,
                "emulated_mbps": each.emulated_mbps,
                "error_pct": each.error_pct,
                "repeats_pct": each.repeats_pct,
                "cpu_bound": each.cpu_bound,
            }
            for each in compared
        ],
        "llama_bench": [
            {"real_seconds": each.real, "emulated_seconds": each.emulated, "error_pct": each.error_pct}
            for each in loads
        ],
    }


def _steady(compared: "list[Compared]") -> "list[Compared]":
    """Those that can be told at all: the disk does the same again, and the machine has CPU time left."""
    from hbf_fuse.disks.fitting import WELL_PCT

    return [each for each in compared if each.repeats_pct <= WELL_PCT and not each.cpu_bound]


def _within_share(compared: "list[Compared]") -> float | None:
    from hbf_fuse.disks.fitting import WELL_PCT

    if not compared:
        return None
    return sum(abs(each.error_pct) <= WELL_PCT for each in compared) / len(compared)


def _print_comparison(compared: "list[Compared]", loads: "list[Load]") -> None:
    from hbf_fuse.disks.fitting import WELL_PCT

    table = Table("job", "real MB/s", "emulated", "error", "real varies by", "", box=box.SIMPLE)
    for each in compared:
        remark = "CPU-bound" if each.cpu_bound else ""
        table.add_row(
            str(each.job),
            f"{each.real_mbps:.1f}",
            f"{each.emulated_mbps:.1f}",
            f"{each.error_pct:+.1f}%",
            f"{each.repeats_pct:.1f}%",
            remark,
        )
    screen = console()
    screen.print(table)
    steady = _steady(compared)
    screen.print(f"within {WELL_PCT:g}%: {_within_share(compared):.0%} of all {len(compared)} jobs")
    if steady and len(steady) < len(compared):
        screen.print(
            f"of the {len(steady)} in which the disk itself repeats within {WELL_PCT:g}% and the CPUs are "
            f"not busy: {_within_share(steady):.0%}"
        )
    for one in loads:
        screen.print(
            f"llama-bench cold: {one.real:.3f} s from the disk, {one.emulated:.3f} s from the mount "
            f"({one.error_pct:+.1f}%)"
        )
