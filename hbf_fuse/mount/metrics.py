"""A mount's counters for Prometheus; docs/metrics.md names them.

Every user of a machine can reach its loopback address. So only the mount's own user and root get an answer,
unless an address was named: then everybody who can reach it.
"""

import contextlib
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem
from hbf_fuse.observe.histogram import Histogram
from hbf_fuse.observe.status import KvStatus, Spec, Stats
from hbf_fuse.tier import TierSpec

try:
    from prometheus_client import CollectorRegistry, MetricsHandler
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector
except ImportError as problem:
    raise HbfError("--metrics needs prometheus-client", "`pip install 'hbf-fuse[metrics]'`") from problem

LOOPBACK = "127.0.0.1"
_CONNECTIONS = Path("/proc/net/tcp")
_CONNECTIONS_AT_ONCE = {True: 16, False: 4}
"""Limits for clients who may have the metrics, and for clients who are refused."""

_CONNECTIONS_EACH = 4
"""Limit per address when everybody is answered."""

_SECONDS_EACH = 10
"""Limit for a client's whole connection."""

_POWERS = range(12, 35)
"""Histograms have buckets that end at these powers of two in ns: 4.1 us to 17 s."""

_STATES = ("agrees", "unsure", "off")
_MOST_FILES = 100
"""Files whose verdicts are shown."""

_ESTABLISHED = "01"
"""The only state that is trusted: the table shows a socket that its owner has closed as root's."""


def serve(fs: Filesystem, where: str) -> None:
    """Answer scrapes at "[ADDRESS:]PORT" from a thread that ends with the process. HbfError if it cannot.

    Without an address: on loopback, and only for this process's user and root.
    """
    address, _, port = where.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise HbfError(f"--metrics {where!r}: write it like 9464, or 0.0.0.0:9464 to let others in")
    registry = CollectorRegistry()
    registry.register(_Collector(fs))
    try:
        kind = _Server6 if ":" in address else _Server
        server = kind((address.strip("[]") or LOOPBACK, int(port)), _handler(registry), bool(address))
    except OSError as error:
        raise HbfError(f"--metrics {where}: {error.strerror}", "use another address or port") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()


class _Server(ThreadingHTTPServer):
    """A thread per connection, of which there are few. Strangers have their own places and take none of the
    others'.
    """

    def __init__(self, address: tuple[str, int], handler: type[MetricsHandler], for_everybody: bool) -> None:
        super().__init__(address, handler)
        self._for_everybody = for_everybody
        self._lock, self._open = threading.Lock(), Counter[str]()
        self._free = {welcome: threading.Semaphore(count) for welcome, count in _CONNECTIONS_AT_ONCE.items()}

    def is_welcome(self, client: Any) -> bool:
        """Whether a client may have the metrics."""
        return self._for_everybody or _owner(client, self.server_address) in (0, os.geteuid())

    def process_request(self, request: Any, client_address: Any) -> None:
        free = self._free[self.is_welcome(client_address)]
        has_many = self._for_everybody and self._open[client_address[0]] >= _CONNECTIONS_EACH
        if has_many or not free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._open[client_address[0]] += 1
        threading.Thread(target=self._answer, args=(request, client_address, free), daemon=True).start()

    def _answer(self, request: Any, client_address: Any, free: threading.Semaphore) -> None:
        # A slow client must not keep its place longer than a silent one.
        end = threading.Timer(_SECONDS_EACH, _cut_off, (request,))
        end.daemon = True
        try:
            end.start()
            self.process_request_thread(request, client_address)
        finally:
            end.cancel()
            with self._lock:
                self._open -= Counter({client_address[0]: 1})
            free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that break off."""


def _cut_off(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _handler(registry: CollectorRegistry) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        def do_GET(self) -> None:
            if isinstance(self.server, _Server) and self.server.is_welcome(self.client_address):
                super().do_GET()
            else:
                self.send_error(403, "Not your mount: --metrics ADDRESS:PORT answers everybody")

    Handler.registry = registry
    return Handler


def _owner(client: Any, server: Any) -> int | None:
    """The user id of a connection's client over loopback, or None if no process of this machine has it open.

    client, server: IPv4 address and port of the two ends.
    """
    for line in _CONNECTIONS.read_text().splitlines()[1:]:
        _, ours, theirs, state, _, _, _, user, *_ = line.split()
        if (ours, theirs, state) == (_hexadecimal(client), _hexadecimal(server), _ESTABLISHED):
            return int(user)
    return None


def _hexadecimal(end: tuple[str, int]) -> str:
    """An end of a connection as in /proc/net/tcp: the address is in this machine's byte order."""
    number = int.from_bytes(socket.inet_aton(end[0]), sys.byteorder)
    return f"{number:08X}:{end[1]:04X}"


class _Collector(Collector):
    """Reads the filesystem's counters at each scrape."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs

    def collect(self) -> Iterator[Metric]:
        """Every metric with its current value."""
        stats = self._fs.hidden.stats_document()
        yield from _facts(self._fs.hidden.spec_document())
        yield CounterMetricFamily("hbf_reads", "Reads that arrived.", value=stats["reads"])
        yield CounterMetricFamily("hbf_interrupted_reads", "Readers killed.", value=stats["interrupted"])
        yield CounterMetricFamily("hbf_failed_reads", "Reads that the source failed.", value=stats["failed"])
        yield CounterMetricFamily(
            "hbf_wait_seconds", "From arrival to data, summed over reads.", value=stats["wait_seconds"]
        )
        yield CounterMetricFamily(
            "hbf_starved_seconds", "The server's threads waited for a CPU.", value=stats["starved_seconds"]
        )
        yield GaugeMetricFamily("hbf_reads_in_flight", "Reads in flight.", value=stats["in_flight"])
        served = CounterMetricFamily("hbf_read_bytes", "Bytes served.", labels=["tier"])
        for tier, nbytes in stats["tier_bytes"].items():
            served.add_metric([tier], nbytes)
        yield served
        counters = self._fs.served.pacer.counted()
        yield _histogram("hbf_read_duration_seconds", "From arrival to data.", counters.took)
        yield _histogram("hbf_lateness_seconds", "Data visible after its deadline.", counters.lateness)
        yield _histogram("hbf_backlog_seconds", "Deadline passed before the arrival.", counters.backlog)
        yield from _readers(stats)
        yield _verdicts(stats)
        if "phases" in stats:
            read = CounterMetricFamily("hbf_phase_read_bytes", "Bytes served by phase.", labels=["phase"])
            took = CounterMetricFamily("hbf_phase_seconds", "Time by phase.", labels=["phase"])
            for name, phase in stats["phases"].items():
                read.add_metric([name], phase["bytes_read"])
                took.add_metric([name], phase["seconds"])
            yield from (read, took)
        if "kv" in stats:
            yield from _kv(stats["kv"])
        if "resident" in stats:
            held = stats["resident"]
            yield GaugeMetricFamily("hbf_resident_bytes", "In the DRAM.", value=held["resident_bytes"])
            yield GaugeMetricFamily("hbf_resident_budget_bytes", "Its size.", value=held["budget_bytes"])
            yield CounterMetricFamily("hbf_evicted_bytes", "Dropped from it.", value=held["evicted_bytes"])


def _facts(spec: Spec) -> Iterator[Metric]:
    known = {
        "source": spec["source"],
        "tier": str(TierSpec.from_dict(spec["tier"])),
        "engine": spec.get("engine", ""),
        "version": spec.get("version", ""),
    }
    # A path may have bytes that are no text.
    yield InfoMetricFamily("hbf", "What is served.", {name: _text(value) for name, value in known.items()})


def _histogram(name: str, documentation: str, histogram: Histogram) -> Metric:
    """A classic histogram, in seconds."""
    below = zip(_POWERS, histogram.below(_POWERS), strict=True)
    buckets = [(repr((1 << power) / 1e9), float(count)) for power, count in below]
    buckets.append(("+Inf", float(histogram.count)))
    return HistogramMetricFamily(name, documentation, buckets=buckets, sum_value=histogram.total / 1e9)


def _kv(kv: KvStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("hbf_kv_size_bytes", "Size of kv/.", value=kv["size_bytes"])
    yield GaugeMetricFamily("hbf_kv_used_bytes", "Used by its files.", value=kv["used_bytes"])
    yield GaugeMetricFamily("hbf_kv_files", "Files in it.", value=kv["files"])
    yield CounterMetricFamily("hbf_kv_writes", "Writes that arrived.", value=kv["writes"])
    yield CounterMetricFamily("hbf_kv_written_bytes", "Bytes written by programs.", value=kv["bytes_written"])
    yield CounterMetricFamily("hbf_kv_read_bytes", "Bytes read from it.", value=kv["bytes_read"])
    yield CounterMetricFamily(
        "hbf_kv_programmed_bytes", "Bytes that the medium programmed.", value=kv["bytes_programmed"]
    )
    yield CounterMetricFamily(
        "hbf_kv_reads_behind", "Reads that waited for a program or an erase.", value=kv["reads_behind"]
    )
    yield CounterMetricFamily(
        "hbf_kv_reads_behind_seconds", "How long they waited.", value=kv["reads_behind_seconds"]
    )
    if wear := kv.get("wear"):
        yield CounterMetricFamily("hbf_kv_erases", "Blocks erased.", value=wear["erases"])
        worn = GaugeMetricFamily("hbf_kv_block_erases", "Erases of a block.", labels=["block"])
        for name in ("least", "mean", "most"):
            worn.add_metric([name], wear[name])
        yield worn
    if kv["days_left"] is not None:
        yield GaugeMetricFamily("hbf_kv_days_left", "Until worn out at this rate.", value=kv["days_left"])


def _readers(stats: Stats) -> Iterator[Metric]:
    reads = CounterMetricFamily("hbf_reader_reads", "Reads by the reader's name.", labels=["comm"])
    asked = CounterMetricFamily("hbf_reader_bytes", "Bytes asked for by the reader's name.", labels=["comm"])
    for each in stats["readers"]:
        reads.add_metric([each["comm"]], each["reads"])
        asked.add_metric([each["comm"]], each["bytes"])
    yield reads
    yield asked


def _verdicts(stats: Stats) -> Metric:
    """The worst first, as there may be many files."""
    judged = GaugeMetricFamily(
        "hbf_verdict",
        "First pass: 0 agrees, 1 unsure, 2 off; code: its main reason.",
        labels=["file", "verdict", "code"],
    )
    found = [(_STATES.index(file["staging"]["verdict"]), name) for name, file in stats["files"].items()]
    for value, name in sorted(found, reverse=True)[:_MOST_FILES]:
        reasons = stats["files"][name]["staging"]["reasons"]
        judged.add_metric([_text(name), _STATES[value], reasons[0] if reasons else ""], value)
    return judged


def _text(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")
