"""Files of hbf 0.1.0 still work, or are refused with what to do. data/0.1.0/ and data/run-*.json are such."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hbf_fuse import documents
from hbf_fuse.calibrate import envelope
from hbf_fuse.errors import HbfError
from hbf_fuse.fs.placement import Layout
from hbf_fuse.gguf import presets, synth
from hbf_fuse.host import machine
from hbf_fuse.mount import client
from hbf_fuse.report import compare, page, summary
from hbf_fuse.runs.results import Results
from hbf_fuse.runs.schema import run_of
from hbf_fuse.sweep import grid as grids
from hbf_fuse.sweep import loop
from hbf_fuse.sweep.cell import Cell, ModelFile, describe
from hbf_fuse.tier import TierSpec
from hbf_fuse.traces.trace import Trace
from hbf_fuse.workload.llama import BenchOptions

HBF = [sys.executable, "-m", "hbf_fuse"]
DATA = Path(__file__).parent / "data"
OLD = DATA / "0.1.0"
MODEL_SHA256 = "8bc50cc31053351c3f9624025848a28578e2a78066829803916a5368f4e890de"
PLANES = {"planes": 8, "page_bytes": 16384, "t_read_us": 50.0}


def hbf(*arguments, **changes):
    line = [*HBF, *map(str, arguments)]
    environment = {**os.environ, **changes}
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert "Traceback" not in said.stderr, said.stderr
    return said


def a_run(mode, valid=True):
    document = json.loads((DATA / f"run-{mode}.json").read_text())
    document["metrics"].update(valid=valid, why="" if valid else "CPU starved")
    return document


def with_planes(document):
    document["cell"]["tier"].update(PLANES)
    return document


def a_folder(folder, *documents_):
    """A results folder as 0.1.0 had it."""
    (folder / "runs").mkdir(parents=True)
    shutil.copy(OLD / "sweep.json", folder)
    for document in documents_:
        (folder / f"runs/{document['cell']['name']}.json").write_text(json.dumps(document))
    return Results(folder)


def the_cell(mode, tier=None):
    """What a run of a_run is of, as this version plans it."""
    spec = TierSpec(bandwidth_mbps=800.0, **(tier or {}))
    layout = Layout(resident_bytes=52169040) if mode == "stream" else Layout()
    model = ModelFile((Path("tiny.gguf"),), 104338080, MODEL_SHA256)
    return Cell(model, spec, mode=mode, bench=BenchOptions(n_prompt=8, n_gen=4), layout=layout)


# Results folders


def test_a_sweep_recognizes_the_cells_that_are_done(tmp_path):
    results, cell = a_folder(tmp_path / "sweep", a_run("mmap")), the_cell("mmap")
    loop.require_same(results, cell)
    assert results.has(cell.name) and results.load(cell.name).cell == describe(cell)


def test_a_csv_without_the_newer_columns_is_not_taken_for_an_edited_one(tmp_path):
    results = a_folder(tmp_path / "sweep", a_run("mmap"))
    names = "tier_mbps", "repeat", "mode", "valid", "pp8"
    run = a_run("mmap")
    values = 800.0, 1, "mmap", True, round(run["metrics"]["pp"], 6)
    results.csv_path.write_text(f"{','.join(names)}\n{','.join(map(str, values))}\n")
    assert results.set_aside_edited_csv() is None
    results.csv_path.write_text(f"{','.join(names)}\n9{','.join(map(str, values))}\n")
    assert results.set_aside_edited_csv()


@pytest.mark.parametrize(
    ("document", "tier", "what"),
    [(a_run("stream"), None, "tokens/s"), (with_planes(a_run("mmap")), PLANES, "planes")],
)
def test_a_sweep_does_not_mix_in_what_was_computed_in_another_way(tmp_path, document, tier, what):
    results = a_folder(tmp_path / "sweep", document)
    if tier:
        known = json.loads((OLD / "sweep.json").read_text())
        known["tier"].update(tier)
        (results.folder / "sweep.json").write_text(json.dumps(known))
    with pytest.raises(HbfError, match=rf"hbf 0.1.0 computed .*{what}.*use another folder"):
        loop.require_same(results, the_cell(document["cell"]["mode"], tier))


def test_a_report_shows_verdicts_as_far_as_they_went(tmp_path):
    runs = a_folder(tmp_path / "sweep", a_run("mmap"), a_run("stream")).all()
    verdicts = {row["mode"]: (row["verdict"], row["valid"]) for row in summary.summarize(runs)}
    assert verdicts == {"mmap": ("agrees", "1/1"), "stream": ("unsure", "0/1")}
    assert "hbf 0.1.0 did not judge tokens/s" in page.markdown(runs)
    assert "CPU starved" in page.markdown([run_of(a_run("stream", valid=False))])
    said = hbf("report", tmp_path / "sweep")
    assert said.returncode == 0 and "unsure" in said.stdout


def test_a_bound_is_not_shown_for_a_point_with_a_run_that_has_none():
    older, newer = a_run("mmap"), a_run("mmap")
    newer["metrics"].update(verdict="agrees", tier_bound_pct=0.4)
    newer["environment"]["compiled"] = True
    verdicts = [
        summary.summarize([run_of(document) for document in documents_])[0]["verdict"]
        for documents_ in ([newer, newer], [older, newer])
    ]
    assert verdicts == ["agrees ±0.4%", "agrees"]


def test_a_comparison_names_planes_that_were_computed_in_another_way():
    older, newer = with_planes(a_run("mmap")), with_planes(a_run("mmap"))
    newer["environment"]["compiled"] = True
    assert run_of(older).cell.tier.interleave == "modulo"
    assert compare.differences([run_of(older)], [run_of(newer)])
    assert not compare.differences([run_of(a_run("mmap"))], [run_of(a_run("mmap"))])


# Other files


def test_a_trace_is_read_and_replayed(tmp_path):
    assert len(Trace.read(OLD / "reads.trace")) == 120
    # The synthetic models had no vocabulary then.
    model = tmp_path / "tiny.gguf"
    synth.write(dataclasses.replace(presets.load("tiny"), words=False), model)
    shown = hbf("trace", "summary", OLD / "reads.trace", "-m", model, "--json")
    phases = json.loads(shown.stdout)["phases"]
    assert phases["load"]["reads"] == 120
    seconds = [
        json.loads(hbf("trace", "replay", OLD / "reads.trace", "--mbps", mbps, "--json").stdout)
        for mbps in (300, 150)
    ]
    assert [found["reads"] for found in seconds] == [120, 120]
    assert seconds[1]["stage_seconds"] == pytest.approx(2 * seconds[0]["stage_seconds"], rel=0.1)


def test_an_envelope_is_of_another_version_not_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    envelope.path().parent.mkdir()
    shutil.copy(OLD / "envelope.json", envelope.path())
    measured = json.loads((OLD / "envelope.json").read_text())["machine"]
    monkeypatch.setattr(machine, "facts", lambda: {**measured, "compiled": True})
    known, ignored = envelope.load()
    assert known is None and "another version of hbf-fuse" in str(ignored)
    assert "hbf calibrate" in ignored.remedy
    monkeypatch.setattr(machine, "facts", lambda: {**measured, "cpu": "another", "compiled": True})
    assert "another CPU" in str(envelope.load()[1])


def test_a_grid_means_the_same_cells():
    grid = grids.from_fields({}, OLD / "grid.toml")
    cells = grid.cells(ModelFile((Path("tiny.gguf"),), 104338080, MODEL_SHA256))
    assert len(cells) == 2 * 2 * 2 * (1 + 1 + 2)
    assert {cell.spec.jitter for cell in cells} == {"uniform:0.1"}
    assert {cell.spec.depth for cell in cells} == {32}
    assert {cell.layout.tiers["flash"].planes for cell in cells} == {8}


@pytest.fixture
def ended(tmp_path):
    """A mountpoint that is unmounted in the end."""
    point = tmp_path / "mnt"
    point.mkdir()
    yield point
    if point.is_mount():
        assert hbf("umount", point).returncode == 0


def test_a_mount_takes_the_environment_file_and_the_tiers(tiny_model, tmp_path, ended):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    values = {"MODEL": tiny_model, "MOUNTPOINT": ended, "TRACE": tmp_path / "trace", "PORT": port}
    text = (OLD / "mount.env").read_text().replace("@TIERS@", str(OLD / "tiers.toml"))
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    settings = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
    said = hbf("mount", *settings["HBF_OPTIONS"].split(), ended, HBF_MODEL=settings["HBF_MODEL"])
    assert said.returncode == 0, said.stderr
    spec = client.read_spec(Path(settings["HBF_MOUNTPOINT"]))
    assert spec["tier"]["planes"] == 8 and spec["tiers"]["slow"]["bandwidth_mbps"] == 100
    assert documents.parse_json((tmp_path / "trace").read_bytes().partition(b"\n")[0])


def test_a_mount_takes_the_configured_model(tiny_model, tmp_path, ended):
    (tmp_path / "hbf").mkdir()
    (tmp_path / "hbf/config.toml").write_text(f'model = "{tiny_model}"\n')
    said = hbf("mount", "--no-preload", ended, XDG_CONFIG_HOME=str(tmp_path), HBF_MODEL="")
    assert said.returncode == 0 and str(tiny_model) in said.stderr


def test_a_live_mount_of_another_version_can_be_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "read_hidden", lambda *_: {"version": "0.1.0", "lateness": {}})
    for read in (client.read_spec, client.read_stats, client.read_tier):
        with pytest.raises(HbfError, match=f"another version.*hbf-umount {tmp_path}"):
            read(tmp_path)
