"""A mount's counters for Prometheus; docs/metrics.md names them."""

from collections.abc import Iterator

from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as problem:
    raise HbfError("--metrics needs prometheus-client; `pip install 'hbf-fuse[metrics]'`") from problem

LOOPBACK = "127.0.0.1"


def serve(fs: Filesystem, where: str) -> None:
    """Answer scrapes at "[ADDRESS:]PORT" from a thread that ends with the process. HbfError if it cannot."""
    address, _, port = where.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise HbfError(f"--metrics {where!r}: write it like 9464, or 0.0.0.0:9464 to let others in")
    registry = CollectorRegistry()
    registry.register(_Collector(fs))
    try:
        start_http_server(int(port), address or LOOPBACK, registry)
    except OSError as error:
        raise HbfError(f"--metrics {where}: {error.strerror}; use another port") from error


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
