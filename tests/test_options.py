"""Options defined once: dataclasses of options as parameters of a command, and the tiers they describe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from hbf_fuse.cli.app import app_of
from hbf_fuse.cli.bench import ModelByOption, ModelOption
from hbf_fuse.cli.common import new_app
from hbf_fuse.cli.flatten import flattened
from hbf_fuse.cli.options import MemoryOptions, ProfileFirst, TierChange, TierOptions
from hbf_fuse.cli.sweep import _apart
from hbf_fuse.tier import SpecError, TierSpec, profiles
from hbf_fuse.tier.spec import NAMES


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("-w", "--width", help="Across.")]
    height: Annotated[int | None, typer.Option("--height", help="Along.")] = None


def said_by(command, *arguments):
    alone = new_app()
    alone.command()(command)
    return CliRunner().invoke(alone, arguments)


@flattened
def draw(
    *,
    paths: Annotated[list[Path], typer.Argument(help="Where.")],
    loud: Annotated[bool, typer.Option("--loud")] = False,
    size: Size,
    colour: Annotated[str, typer.Option("--colour")] = "blue",
) -> None:
    """Draw it."""
    print(paths, loud, size, colour)


def test_a_field_is_an_option_and_the_command_gets_the_dataclass():
    said = said_by(draw, "a", "b", "-w", "3", "--loud")
    assert said.output.strip() == f"{[Path('a'), Path('b')]} True {Size(3)} blue"


def test_a_field_without_a_default_must_be_given():
    assert said_by(draw, "a").exit_code == 2
    assert said_by(draw, "a", "-w", "wide").exit_code == 2


def test_help_has_the_fields_in_the_place_of_the_dataclass():
    said = said_by(draw, "--help").output
    places = [said.index(word) for word in ("Draw it.", "--loud", "--width", "--height", "--colour")]
    assert places == sorted(places) and "Across." in said


def test_two_options_of_one_name_are_refused_where_they_are_declared():
    def twice(size: Size, other: Size) -> None:
        pass

    with pytest.raises(ValueError, match="width"):
        flattened(twice)


def test_every_field_of_a_tier_is_an_option():
    link = {"mbps": 5, "lat": 1, "jitter": "uniform:0.5", "seed": 3, "depth": 16, "seek": 4, "chunk": 8192}
    planes = {"planes": 8, "page": 8192, "t_read": 20, "interleave": "modulo"}
    writes = {"write_mbps": 4, "t_prog": 100, "t_erase": 2000, "block": 64, "spare": 15, "suspend": 5}
    values: dict[str, Any] = {**link, **planes, **writes, "endurance": 3000}
    every = TierOptions(**values)
    assert every.given() == values and values.keys() == NAMES.keys()
    assert every.spec() == TierSpec(**{NAMES[name]: value for name, value in values.items()})
    assert TierOptions().spec() == TierSpec() and TierChange(seed=0).given() == {"seed": 0}


def test_an_option_overrides_its_profile_and_says_so(capsys):
    known = profiles.load("hbf-ocp-low").spec()
    assert ProfileFirst(profile="hbf-ocp-low", interleave="hashed").spec() == known
    assert not capsys.readouterr().err
    other = ProfileFirst(profile="hbf-ocp-low", interleave="modulo", mbps=5).spec()
    assert other == known.changed({"mbps": 5, "interleave": "modulo"})
    said = capsys.readouterr().err
    assert "interleave modulo instead of the profile's" in said
    assert "bandwidth_mbps 5 instead of the" in said and "profile hbf-ocp-low" in said


def test_an_unknown_interleave_is_an_error_that_names_the_known_ones():
    with pytest.raises(SpecError, match="hashed, modulo"):
        TierOptions(interleave="sideways").spec()


def test_memory_options_become_a_layout():
    layout = MemoryOptions(place=["exps=dram"]).layout(5)
    assert (layout.resident_bytes, layout.policy, layout.place) == (5, "pin", ("exps=dram",))


@pytest.mark.parametrize("command", ["mount", "bench", "set", "trace replay", "kv solve"])
def test_every_command_with_a_tier_has_all_of_its_options(command):
    said = CliRunner().invoke(app_of(), [*command.split(), "--help"], env={"COLUMNS": "200"}).output
    names = NAMES if command in ("mount", "bench") else NAMES.keys() - {"chunk"}  # of mappings alone
    assert all(f"--{name.replace('_', '-')} " in said for name in names)


def hbf(*arguments):
    return CliRunner().invoke(
        app_of(), [*map(str, arguments)], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"}
    )


def test_a_model_is_named_first_or_with_its_option(tiny_model):
    ways = [ModelOption(model=tiny_model), ModelOption(model_file=tiny_model), ModelByOption(tiny_model)]
    assert [way.source() for way in ways] == [tiny_model] * 3
    assert ModelOption().given is None


@pytest.mark.parametrize(
    "command", ["bench", "sweep", "kv sim --context 1024", "kv solve --context 1024 --tps 1"], ids=str.split
)
def test_a_model_that_is_named_twice_is_wrong_usage(command, tiny_model, llama_bench):
    said = hbf(*command.split(), tiny_model, "-m", "other.gguf")
    assert said.exit_code == 2 and "the model is given twice" in said.output
    assert "tiny.gguf, and with -m other.gguf; leave out one" in said.output


@pytest.mark.parametrize("command", ["kv sim --context 1024", "kv solve --context 1024 --tps 1"])
def test_a_positional_model_gives_the_same_as_the_option(command, tiny_model):
    first, optional = (
        hbf(*command.split(), tiny_model, "--json"),
        hbf(*command.split(), "-m", tiny_model, "--json"),
    )
    assert first.exit_code == 0 and first.stdout == optional.stdout


@pytest.mark.parametrize(
    "command", ["bench", "sweep", "kv sim", "kv solve", "kv ceiling", "kv info", "model info"]
)
def test_every_command_with_a_model_takes_it_first(command):
    usage = next(line for line in hbf(*command.split(), "--help").output.splitlines() if "Usage:" in line)
    first = usage.replace("[OPTIONS]", "").split()[len(command.split()) + 2]
    assert first.strip("[]{}").upper() == "MODEL"


def test_an_empty_model_is_wrong_usage_and_not_the_default():
    said = hbf("bench", "")
    assert said.exit_code == 2 and "a path is empty" in said.output


def test_a_sweep_takes_a_model_a_grid_or_both(tiny_model):
    grid = Path("grid.toml")
    assert _apart(ModelOption(model_file=grid), None) == (ModelOption(), grid)
    assert _apart(ModelOption(model=tiny_model, model_file=grid), None) == (ModelOption(tiny_model), grid)
    both = ModelOption(model_file=tiny_model)
    assert _apart(both, grid) == (both, grid)
    assert _apart(both, None) == (both, None)
    with pytest.raises(typer.BadParameter, match="the model first"):
        _apart(ModelOption(model_file=grid), tiny_model)
