"""Steering and watching a live mount."""

import dataclasses
import json
import os
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
from hbf_fuse.mount import child, client
from hbf_fuse.mount.server import MountConfig
from hbf_fuse.tier import TierSpec

MIB = 1 << 20
ENGINES = pytest.mark.parametrize("engine", ["kernel", "fusepy"])


def hbf(*arguments):
    line = [sys.executable, "-m", "hbf_fuse", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.timing
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
def test_the_control_file_takes_json_and_shows_what_holds(mount, noise, engine):
    point = mount(noise(MIB), mbps=500, lat=1, engine=engine)
    said = json.loads((point / ".hbf/control").read_text())
    assert said["mbps"] == 500 and said["lat"] == 1
    (point / ".hbf/control").write_text('{"lat": 2, "jitter": "uniform:0.5"}\n')
    said = json.loads((point / ".hbf/control").read_text())
    assert (said["mbps"], said["lat"], said["jitter"]) == (500, 2, "uniform:0.5")
    subprocess.run(["sh", "-c", f"echo '{{\"mbps\": null}}' > {point}/.hbf/control"], check=True, timeout=20)
    assert json.loads((point / ".hbf/control").read_text())["mbps"] is None


class Slowly:
    """A function after which another thread may come first."""

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
            fs.write(handle, message)

    def alternate():
        handle = fs.open(ino, os.O_WRONLY)
        for number in range(1, 301):
            fs.write(handle, json.dumps({"mbps": number}).encode())
            assert fs.spec.bandwidth_mbps == number

    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(say, b'{"lat": 2}'), pool.submit(say, b'{"depth": 7}'), pool.submit(alternate)]
    for each in waiting:
        each.result()
    assert slowly.calls == 900
    assert (fs.spec.bandwidth_mbps, fs.spec.latency_ms, fs.spec.depth) == (300, 2, 7)


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
def test_a_message_that_cannot_be_understood_is_refused(message):
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
    assert "no live hbf mount" in hbf("set", noise(5).parent, "--mbps", 5).stderr
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


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_metrics_are_served_on_loopback_and_documented(noise, tmp_path):
    point = tmp_path / "mnt"
    point.mkdir()
    port = _free_port()
    source = noise(2 * MIB)
    with child.mounted(MountConfig(source, point, TierSpec(500), metrics=str(port))) as mount:
        (mount / "model.gguf").read_bytes()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    (served,) = (line for line in text.splitlines() if line.startswith('hbf_read_bytes_total{tier="hbf"}'))
    assert float(served.split()[1]) == 2 * MIB
    documented = (Path(__file__).parent.parent / "docs/metrics.md").read_text()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert not {name for name in names if f"`{name}`" not in documented}


@pytest.mark.parametrize("where", ["http", "0", "99999", "127.0.0.1:x"])
def test_a_port_that_is_none_is_refused(noise, tmp_path, where):
    point = tmp_path / "mnt"
    point.mkdir()
    with (
        pytest.raises(HbfError, match="--metrics"),
        child.mounted(MountConfig(noise(MIB), point, TierSpec(500), metrics=where)),
    ):
        pass
    assert not point.is_mount()
