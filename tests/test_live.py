"""Changing and watching a live mount."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem, control
from hbf_fuse.mount import child, client, server
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

MIB = 1 << 20
ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])


def hbf(*arguments):
    line = [sys.executable, "-m", "hbf_fuse", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


@ENGINES
def test_set_changes_the_rate_of_a_live_mount_without_losing_a_read(mount, noise, engine):
    source = noise(80 * MIB)
    point = mount(source, mbps=20, engine=engine)
    read = []
    reader = threading.Thread(target=lambda: read.append((point / "model.gguf").read_bytes()))
    begin = time.monotonic()
    reader.start()
    time.sleep(0.15)
    said = hbf("set", point, "--mbps", 800)
    reader.join(timeout=30)
    assert said.returncode == 0 and "800 MB/s" in said.stderr and "20 MB/s" in said.stderr
    assert read == [source.read_bytes()]
    assert time.monotonic() - begin < 0.9 * 80 * MIB / 20e6
    assert client.read_hidden(point, "spec.json")["tier"]["bandwidth_mbps"] == 800
    (file,) = client.read_hidden(point, "stats.json")["files"].values()
    assert not file["staging"]["valid"] and "tier-changed" in file["staging"]["reasons"]


@ENGINES
def test_the_control_file_takes_json_and_shows_the_current_tier(mount, noise, engine):
    point = mount(noise(MIB), mbps=500, lat=1, engine=engine)
    said = json.loads((point / ".hbf/control").read_text())
    assert said["mbps"] == 500 and said["lat"] == 1
    (point / ".hbf/control").write_text('{"lat": 2, "jitter": "uniform:0.5"}\n')
    said = json.loads((point / ".hbf/control").read_text())
    assert (said["mbps"], said["lat"], said["jitter"]) == (500, 2, "uniform:0.5")
    subprocess.run(["sh", "-c", f"echo '{{\"mbps\": null}}' > {point}/.hbf/control"], check=True, timeout=20)
    assert json.loads((point / ".hbf/control").read_text())["mbps"] is None


class Slowly:
    """A function after which another thread may run first."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        result = self.function(*arguments)
        time.sleep(0)
        return result


def test_messages_at_once_lose_nothing(noise, monkeypatch):
    monkeypatch.setattr(control, "applied", slowly := Slowly(control.applied))
    fs = Filesystem(noise(4096), TierSpec(100, 1))
    ino = next(node.ino for node in fs.tree.nodes.values() if node.name == b"control")

    def say(message):
        handle = fs.open(ino, os.O_WRONLY)
        for _ in range(300):
            fs.take(fs.opened(handle), message)

    def alternate():
        handle = fs.open(ino, os.O_WRONLY)
        for number in range(1, 301):
            fs.take(fs.opened(handle), json.dumps({"mbps": number}).encode())
            assert fs.served.spec.bandwidth_mbps == number

    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(say, b'{"lat": 2}'), pool.submit(say, b'{"depth": 7}'), pool.submit(alternate)]
    for each in waiting:
        each.result()
    assert slowly.calls == 900
    assert (fs.served.spec.bandwidth_mbps, fs.served.spec.latency_ms, fs.served.spec.depth) == (300, 2, 7)


HOSTILE = [
    b"",
    b"mbps=5",
    b"[]",
    b"{}",
    b"5",
    b'{"mbps": -1}',
    b'{"mbps": "fast"}',
    b'{"mbps": 1e400}',
    b'{"lat": NaN}',
    b'{"jitter": 5}',
    b'{"colour": "blue"}',
    b'{"bandwidth_mbps": 5}',
    b'{"interleave": "sideways"}',
    b'{"interleave": []}',
    b'{"jitter": "uniform:9"}',
    b"\xff\x00" * 100,
    b"[" * 4000,
    b'{"a":' * 600,
]


@pytest.mark.parametrize("message", HOSTILE, ids=range(len(HOSTILE)))
def test_an_invalid_message_is_refused(message):
    with pytest.raises(ValueError):
        control.applied(message, TierSpec(500, 1))


def test_every_field_of_a_tier_has_a_name_in_messages():
    before, message = TierSpec(500, 1), {"page": 8192, "interleave": "modulo", "mbps": None}
    after = control.applied(json.dumps(message).encode(), before)
    assert after == TierSpec(None, 1, page_bytes=8192, interleave="modulo")
    assert {**control.current(before), **message} == control.current(after)
    assert len(control.current(after)) == len(dataclasses.fields(after))


def test_set_changes_the_interleave_of_a_live_mount(mount, noise):
    point = mount(noise(MIB), mbps=500)
    said = hbf("set", point, "--planes", 8, "--t-read", 20, "--interleave", "modulo")
    assert said.returncode == 0 and "20 us, modulo, was 500 MB/s" in said.stderr
    assert json.loads((point / ".hbf/control").read_text())["interleave"] == "modulo"
    said = hbf("set", point, "--interleave", "sideways")
    assert said.returncode == 1 and "hashed, modulo" in said.stderr


@ENGINES
def test_a_mount_lives_through_hostile_messages(mount, noise, engine):
    source = noise(MIB)
    point = mount(source, mbps=500, lat=1, engine=engine)
    before = (point / ".hbf/control").read_text()
    for message in [*HOSTILE[1:], b"x" * 100_000]:
        fd = os.open(point / ".hbf/control", os.O_WRONLY)
        try:
            with pytest.raises(OSError):
                os.write(fd, message)
        finally:
            os.close(fd)
    assert (point / ".hbf/control").read_text() == before
    assert (point / "model.gguf").read_bytes() == source.read_bytes()


@ENGINES
def test_only_the_control_file_can_be_written(mount, noise, engine):
    point = mount(noise(MIB), engine=engine)
    for name in ("model.gguf", ".hbf/spec.json", ".hbf/stats.json", ".hbf/trace", ".hbf/new"):
        with pytest.raises(OSError):
            (point / name).write_text("x")
    with pytest.raises(OSError):
        os.truncate(point / "model.gguf", 0)
    assert (point / ".hbf/control").stat().st_mode & 0o777 == 0o600


def test_set_says_what_is_wrong_and_changes_nothing(mount, noise):
    point = mount(noise(MIB), mbps=500)
    assert "above 0" in hbf("set", point, "--mbps", 0).stderr
    assert "--lat" in hbf("set", point, "--jitter", "uniform:3").stderr
    assert hbf("set", point).returncode == 2
    assert "not a live hbf mount" in hbf("set", noise(5).parent, "--mbps", 5).stderr
    assert client.read_hidden(point, "spec.json")["tier"]["bandwidth_mbps"] == 500


def test_a_server_refuses_what_the_client_would_not_send(mount, noise):
    with pytest.raises(HbfError, match="stays as it was"):
        client.send(mount(noise(MIB)), {"mbps": -5})


def test_top_shows_throughput_and_layers(mount, tiny_model):
    point = mount(tiny_model, mbps=60)
    reader = threading.Thread(target=(point / "model.gguf").read_bytes)
    reader.start()
    said = hbf("top", point, "--count", 2, "--interval", 0.3)
    reader.join(timeout=30)
    assert said.returncode == 0, said.stderr
    assert "throughput" in said.stdout and "hottest layers" in said.stdout and "MiB" in said.stdout


@ENGINES
def test_a_mount_tells_who_reads_it(mount, noise, engine):
    """A program that ended long before anybody asked is known by its name, too."""
    size = 4 * MIB
    point = mount(noise(size), mbps=500, engine=engine)
    subprocess.run(["cat", point / "model.gguf"], stdout=subprocess.DEVNULL, check=True, timeout=30)
    stats = client.read_stats(point)
    (reader,) = stats["readers"]
    assert (reader["comm"], reader["bytes"], reader["reads"]) == ("cat", size, stats["reads"])
    assert reader["pid"] > 0 and not Path(f"/proc/{reader['pid']}").exists()
    assert "read by cat 4.00 MiB" in hbf("status", point).stdout
    assert "cat" in json.loads(hbf("status", point, "--json").stdout)["stats"]["readers"][0]["comm"]


@pytest.mark.parametrize(("engine", "lat"), [("kernel", 0), ("fusepy", 0), ("kernel", 3)])
def test_lateness_is_that_of_each_read_and_not_what_its_reader_is_behind(mount, noise, engine, lat):
    """No machine keeps up with this tier: each read takes far longer than the tier says, and the next one is
    behind by the sum. None was later than it took.
    """
    point = mount(noise(8 * MIB), mbps=1_000_000, lat=lat, engine=engine)
    fd = os.open(point / "model.gguf", os.O_RDONLY | os.O_DIRECT)
    try:
        took = []
        for number in range(2000 if not lat else 100):
            begin = time.monotonic_ns()
            os.pread(fd, 4096, number * 4096)
            took.append(time.monotonic_ns() - begin)
    finally:
        os.close(fd)
    stats = client.read_stats(point)
    late, backlog = stats["lateness_ns"], stats["backlog_ns"]
    # The reply's end is seen later by the server than by the reader where both want one core.
    assert late["p50"] <= 3 * sorted(took)[len(took) // 2] + 1_000_000
    if lat:
        assert backlog["p50"] == 0, "it has caught up after each read"
    else:
        assert backlog["p50"] > 20 * late["p50"], "it never catches up"


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@ENGINES
def test_metrics_are_served_on_loopback_and_documented(noise, tmp_path, engine):
    point = tmp_path / "mnt"
    point.mkdir()
    port = _free_port()
    source = noise(2 * MIB)
    with child.mounted(MountConfig(source, point, TierSpec(500), engine, metrics=str(port))) as mount:
        subprocess.run(["cat", mount / "model.gguf"], stdout=subprocess.DEVNULL, check=True, timeout=30)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    (served,) = (line for line in text.splitlines() if line.startswith('hbf_read_bytes_total{tier="hbf"}'))
    assert float(served.split()[1]) == 2 * MIB
    documented = (Path(__file__).parent.parent / "docs/metrics.md").read_text()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert not {name for name in names if f"`{name}`" not in documented}
    lines = text.splitlines()
    facts = dict(re.findall(r'(\w+)="([^"]*)"', next(line for line in lines if line.startswith("hbf_info{"))))
    assert facts.items() >= {"source": str(source), "tier": str(TierSpec(500)), "engine": engine}.items()
    values = {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }
    assert values['hbf_reader_bytes_total{comm="cat"}'] == 2 * MIB
    (judged,) = (name for name in values if name.startswith("hbf_verdict{"))
    assert 'file="model.gguf"' in judged and 'code="' in judged
    assert f'verdict="{("agrees", "unsure", "off")[int(values[judged])]}"' in judged
    for name in ("hbf_read_duration_seconds", "hbf_lateness_seconds", "hbf_backlog_seconds"):
        buckets = [value for each, value in values.items() if each.startswith(f"{name}_bucket")]
        assert buckets == sorted(buckets) and values[f"{name}_count"] == buckets[-1]
    beside = Path(sys.executable).with_name("promtool")
    promtool = beside if beside.exists() else shutil.which("promtool")
    if not promtool:
        pytest.skip("there is no promtool (tools/setup fetches it from Debian's package prometheus)")
    said = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


@pytest.mark.parametrize("where", ["http", "0", "99999", "127.0.0.1:x"])
def test_an_invalid_port_is_refused(noise, tmp_path, where):
    point = tmp_path / "mnt"
    point.mkdir()
    with (
        pytest.raises(HbfError, match="--metrics"),
        child.mounted(MountConfig(noise(MIB), point, TierSpec(500), metrics=where)),
    ):
        pass
    assert not point.is_mount()


def test_a_thread_that_ends_with_an_error_is_shown_by_the_mount(noise):
    said: list[str] = []
    fs = Filesystem(noise(4096), TierSpec())
    before = threading.excepthook
    try:
        server._report_broken_threads(fs, said.append)
        thread = threading.Thread(target=lambda: 1 // 0, name="drop")
        thread.start()
        thread.join()
    finally:
        threading.excepthook = before
    (told,) = fs.hidden.stats_document()["broken"]
    assert told.startswith("drop: ZeroDivisionError")
    assert said[0].startswith("a thread of the server has ended (drop:")
