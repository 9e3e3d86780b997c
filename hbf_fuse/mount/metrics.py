"""A mount's counters for Prometheus; docs/metrics.md names them.

Every user of a machine reaches its loopback. So an answer goes to the mount's own user (and root) alone,
unless an address was named: then to everybody who reaches that.
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

try:
    from prometheus_client import CollectorRegistry, MetricsHandler
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as problem:
    raise HbfError("--metrics needs prometheus-client; `pip install 'hbf-fuse[metrics]'`") from problem

LOOPBACK = "127.0.0.1"
_CONNECTIONS = Path("/proc/net/tcp")
_CONNECTIONS_AT_ONCE = {True: 16, False: 4}
"""Of those who may have the metrics, and of those who are refused."""

_CONNECTIONS_EACH = 4
"""Of one address where everybody is answered."""

_SECONDS_EACH = 10
"""For all that a client may take."""

_ESTABLISHED = "01"
"""The only state that is believed: a socket that its owner has closed is root's, by that table."""


def serve(fs: Filesystem, where: str) -> None:
    """Answer scrapes at "[ADDRESS:]PORT" from a thread that ends with the process. HbfError if it cannot.

    Without an address: on loopback, and to this process's user and root only.
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
        raise HbfError(f"--metrics {where}: {error.strerror}; use another address or port") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()


class _Server(ThreadingHTTPServer):
    """A thread per connection, of which there are few: strangers take none of those that are for others."""

    def __init__(self, address: tuple[str, int], handler: type[MetricsHandler], for_everybody: bool) -> None:
        super().__init__(address, handler)
        self._for_everybody = for_everybody
        self._lock, self._open = threading.Lock(), Counter[str]()
        self._free = {welcome: threading.Semaphore(count) for welcome, count in _CONNECTIONS_AT_ONCE.items()}

    def is_welcome(self, client: Any) -> bool:
        """Whether whoever made a connection may have the metrics."""
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
        # Who sends or takes a byte now and then holds a place no longer than who says nothing.
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
        """A client that breaks off is nobody's news."""


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
    """The user id of who made a connection over loopback, or None if nobody of this machine has it open.

    client, server: IPv4 address and port of its two ends.
    """
    for line in _CONNECTIONS.read_text().splitlines()[1:]:
        _, ours, theirs, state, _, _, _, user, *_ = line.split()
        if (ours, theirs, state) == (_hexadecimal(client), _hexadecimal(server), _ESTABLISHED):
            return int(user)
    return None


def _hexadecimal(end: tuple[str, int]) -> str:
    """An end of a connection as /proc/net/tcp has it: the address in this machine's byte order."""
    number = int.from_bytes(socket.inet_aton(end[0]), sys.byteorder)
    return f"{number:08X}:{end[1]:04X}"


class _Collector(Collector):
    """Reads the filesystem's counters at each scrape."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs

    def collect(self) -> Iterator[Metric]:
        """Every metric with its present value."""
        stats = self._fs.stats_document()
        late_ns = stats["lateness_ns"]
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
        late = GaugeMetricFamily(
            "hbf_lateness_seconds", "Data visible after its deadline.", labels=["quantile"]
        )
        late.add_metric(["0.5"], late_ns["p50"] / 1e9)
        late.add_metric(["0.99"], late_ns["p99"] / 1e9)
        yield late
        if "resident" in stats:
            held = stats["resident"]
            yield GaugeMetricFamily("hbf_resident_bytes", "In the DRAM.", value=held["resident_bytes"])
            yield GaugeMetricFamily("hbf_resident_budget_bytes", "Its size.", value=held["budget_bytes"])
            yield CounterMetricFamily("hbf_evicted_bytes", "Dropped from it.", value=held["evicted_bytes"])
