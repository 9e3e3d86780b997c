"""`hbf validate`: published values, computed by this program."""

import json
import subprocess
import sys

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.validate import computing, values

GOOD = """
source = "A paper"
[[value]]
name = "a"
section = "1"
what = "a rate"
by = "read_rate"
inputs = { tier = { bandwidth_mbps = 1000.0 }, size = 1048576 }
published = 1.0
unit = "GB/s"
read = "in the original"
"""


@pytest.fixture(scope="module")
def results():
    return [computing.result(value) for value in values.load()]


def test_there_are_enough_from_enough_sources(results):
    counts = computing.counts(results)
    assert counts["count"] - counts["not_reproduced"] >= 25
    assert counts["sources"] >= 5


def test_what_is_missed_is_explained_and_nothing_else_is(results):
    for result in results:
        assert (result.verdict == "missed") == ("MISSED" in result.value.remark), result.value.name


def test_second_hand_values_say_so(results):
    for result in results:
        assert result.value.read.startswith(("in the original", "off a figure", "second-hand")), (
            result.value.name
        )


def test_arithmetic_of_one_run_is_within_its_tolerance(results):
    """Only forecasts may be missed, and what its own source contradicts."""
    missed = {
        result.value.name for result in results if result.verdict == "missed" and not result.value.forecast
    }
    assert missed <= {"kv-hf-llama-3.1-405b-128k", "xl-flash-5us", "kyung-lifetime-maverick-16k"}


def test_a_value_by_hand():
    (value,) = values.parse("a.toml", GOOD)
    result = computing.result(value)
    assert result.ours == pytest.approx(1.0, rel=1e-6)
    assert result.verdict == "within"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ('source = "A paper"\nyear = 2026', "unknown key 'year'"),
        ("section", "unknown key 'sektion'"),
        ("GB/s", "unknown unit 'furlongs'"),
        ("bandwidth_mbps", "unknown tier parameter"),
        ("size = 1048576", "unknown input 'color'"),
        ("read_rate", "unknown computation"),
        ("published = 1.0", "another type"),
        ('by = "read_rate"', "needs one of"),
        ("[[value]]", "unknown key 'values'"),
        ('source = "A paper"', "is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(changed, words):
    instead = {
        "section": "sektion",
        "GB/s": "furlongs",
        "bandwidth_mbps": "speed",
        "size = 1048576": "color = 3",
        "read_rate": "magic",
        "published = 1.0": 'published = "fast"',
        'by = "read_rate"': "",
        "[[value]]": "[values]",
        'source = "A paper"': "",
    }
    text = (
        changed + GOOD.replace('source = "A paper"', "")
        if "year" in changed
        else GOOD.replace(changed, instead[changed], 1)
    )
    with pytest.raises((HbfError, ValueError), match=words):
        for value in values.parse("a.toml", text):
            computing.result(value)


def test_the_command_prints_misses_too():
    line = [sys.executable, "-P", "-m", "hbf_fuse", "validate", "--json", "writes"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no published value" in done.stderr
    done = subprocess.run([*line[:-1], "kyung-tpot-*"], capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert {each["verdict"] for each in document["values"]} == {"missed"}
    assert document["missed"] >= 1


@pytest.mark.parametrize(
    "line", ["published = nan", "published = 0.0", "published = true", "published = 1.0\nforecast = 1"]
)
def test_figures_that_nothing_can_be_compared_with_are_refused(line):
    with pytest.raises(HbfError, match=r"published|forecast"):
        values.parse("a.toml", GOOD.replace("published = 1.0", line))


@pytest.mark.parametrize(
    ("bound", "published", "verdict"),
    [("at most", 2.0, "within"), ("at most", 0.5, "missed"), ("at least", 0.5, "within")],
)
def test_a_bound_is_kept_or_not(bound, published, verdict):
    text = GOOD.replace("published = 1.0", f'published = {published}\nbound = "{bound}"')
    assert computing.result(values.parse("a.toml", text)[0]).verdict == verdict
