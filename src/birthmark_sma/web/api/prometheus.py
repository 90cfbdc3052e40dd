"""GET /metrics: the metrics of all processes of a server, in Prometheus's text format.

Every process returns the same values. Verdicts and devices come from the database, which counts an
audit row in the transaction that writes it. All other metrics come from memory that the processes
share (`runtime.shared_memory_metrics`). While the database is away, its metric families are left
out and `sma_database_up` is 0.
"""

import asyncio
import logging
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cryptography import x509
from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.responses import Response

from birthmark_sma import __version__
from birthmark_sma.authority import server_metrics
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.operations.statistics import Totals, TotalsReader
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.runtime import metrics as table
from birthmark_sma.runtime.metrics import METRICS, Metric
from birthmark_sma.runtime.shared_memory_metrics import (
    Gauge,
    Histogram,
    SharedCounters,
    SlotAllocator,
)
from birthmark_sma.web.api import openapi
from birthmark_sma.web.middleware import request_metrics
from birthmark_sma.web.middleware.request_metrics import RequestMetrics
from birthmark_sma.web.middleware.timeouts import MetricsCache
from birthmark_sma.web.server_state import ApiRequest

Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]
Family: TypeAlias = Any  # prometheus_client's families have no common type for `add_metric`
_FAMILIES: Mapping[str, Callable[..., Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}

PATH = "/metrics"
_COPY_SECONDS = 1.0  # a process that is killed loses at most this much of what it counted
# The callers that provision devices choose the names of families, so the labels are bounded.
_MOST_FAMILIES = 50
_REST = "(others)"

_log = logging.getLogger(__name__)

router = APIRouter(tags=["operate"])


@router.get(
    PATH,
    summary="Metrics for Prometheus",
    description="In the text format 0.0.4. The metrics cover all processes of this server; those of"
    " verdicts and devices cover the whole database.",
    response_class=Response,
    responses={
        200: {
            "description": "The metrics",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **openapi.problems(PATH, 429, 500),
    },
)
async def metrics(request: ApiRequest) -> Response:
    """Return the metrics, at most half a second old."""
    return Response(
        await request.server.metrics_text.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4}
    )


def make_metrics_cache(
    authority: Authority, traffic: RequestMetrics, thread: Executor
) -> MetricsCache[Totals]:
    """Return the cache of the /metrics text. `thread` has one thread, for this cache alone."""

    def phrase(totals: Totals | None) -> bytes:
        # First copy this process's counts to the shared memory, which the collector reads.
        authority.copy_figures()
        traffic.copy_figures()
        registry = CollectorRegistry()
        registry.register(_Server(authority, traffic, totals))
        return generate_latest(registry)

    return MetricsCache(thread, TotalsReader(authority.database).read, phrase)


async def copy_figures(authority: Authority, traffic: RequestMetrics) -> None:
    """Copy the counts of this process to the shared memory every second, until cancelled.

    Also take a snapshot of the latencies, for the percentiles of the last minutes. An error is
    logged once until the step that raised it succeeds again, and ends neither the task nor the
    other steps.
    """
    failing: set[Callable[[], None]] = set()
    while True:
        for step in (authority.copy_figures, traffic.copy_figures, traffic.look):
            _try(step, failing)
        await asyncio.sleep(_COPY_SECONDS)


def _try(step: Callable[[], None], failing: set[Callable[[], None]]) -> None:
    try:
        step()
    except Exception:
        if step not in failing:
            _log.exception("the metrics of this process could not be copied: trying every second")
        failing.add(step)
    else:
        failing.discard(step)


@dataclass(frozen=True, slots=True, eq=False)
class _Server(Collector):
    """A collector of all metrics, made for one scrape. `totals` is None if the database is away."""

    authority: Authority
    traffic: RequestMetrics
    totals: Totals | None

    def collect(self) -> Iterable[Family]:
        """Yield a family for each metric. prometheus_client calls this when it makes the text."""
        read = self._read()
        memories = (
            (server_metrics.LAYOUT, self.authority.figures.shared_counters),
            (request_metrics.LAYOUT, self.traffic.shared_counters),
        )
        for metric in METRICS:
            samples = read.get(metric, ())
            if samples is None:
                continue
            family = _FAMILIES[metric.type](metric.name, metric.help, labels=metric.labels)
            for labels, value in samples:
                family.add_metric(labels, value)
            for layout, memory in memories:
                if metric not in read and metric in layout.instruments:
                    _add_counted(family, metric, layout, memory)
            yield family

    def _read(self) -> Mapping[Metric, Samples | None]:
        """Return the samples of all metrics that are not counted in shared memory.

        None if the database is away. Table ranges are counted there by their numbers.
        """
        authority, totals = self.authority, self.totals
        alive = len(authority.figures.shared_counters.alive())
        wal_bytes = authority.database.wal_bytes
        build = (__version__, platform.python_version(), authority.database.dialect_name)
        samples: dict[Metric, Samples | None] = {
            table.BUILD_INFO: [(build, 1)],
            table.WORKERS: [((), len(self.traffic.shared_counters.alive()))],
            table.QUEUE_LIMIT_ITEMS: [((), authority.settings.pool_limit * alive)],
            table.KEY_TABLE_TOKENS: self._count_by_table_range(),
            table.CERTIFICATE_EXPIRY: self._read_expiry(),
            table.DATABASE_UP: [((), totals is not None)],
            table.SQLITE_WAL_BYTES: [] if wal_bytes is None else [((), wal_bytes)],
            table.VERDICTS: None,
            table.REPEATS: None,
            table.DEVICES: None,
            table.DEVICE_CERTIFICATES_EXPIRING: None,
            table.TABLE_OVERLAPS_OPEN: None,
        }
        return samples if totals is None else {**samples, **_read_totals(totals)}

    def _count_by_table_range(self) -> Samples:
        tables = self.authority.table_sizes.tables
        step = server_metrics.tables_a_range(tables)
        used = server_metrics.TABLE_RANGES.total(self.authority.figures.shared_counters.all())
        for first in range(0, tables, step):
            yield (f"{first}-{min(first + step, tables) - 1}",), used[str(first // step),]

    def _read_expiry(self) -> Samples:
        certificates = {
            "root": self.authority.root,
            "intermediate": self.authority.issuer.certificate,
            "tls": _served_certificate(self.authority.settings.tls_cert),
        }
        for name, certificate in certificates.items():
            if certificate is not None:
                yield (name,), certificate.not_valid_after_utc.timestamp()


def _read_totals(totals: Totals) -> Mapping[Metric, Samples]:
    reasons = {(each.verdict.value, each.value): totals.reasons[each] for each in Reason}
    return {
        table.VERDICTS: reasons.items(),
        table.REPEATS: [((kind.value,), totals.repeats[kind]) for kind in Repeat],
        table.DEVICES: [((family,), n) for family, n in _largest(totals.devices).items()],
        table.DEVICE_CERTIFICATES_EXPIRING: [
            ((f"{days}d" if days else "expired",), n) for days, n in totals.expiring.items()
        ],
        table.TABLE_OVERLAPS_OPEN: [((), totals.open_overlaps)],
    }


def _add_counted(
    family: Family, metric: Metric, layout: SlotAllocator, memory: SharedCounters
) -> None:
    """Add what the processes have counted in shared memory.

    Counters and histograms add up all rows, also those of dead processes, so that they never fall.
    Gauges add up those of running processes.
    """
    for instrument in layout.instruments[metric]:
        if isinstance(instrument, Gauge):
            number = instrument.total(memory.alive()) / metric.per_unit
            family.add_metric(instrument.labels, number)
        elif isinstance(instrument, Histogram):
            # Prometheus's buckets are cumulative, as the counts of `total` are.
            counts, amount = instrument.total(memory.all())
            bounds = [*(repr(each / metric.per_unit) for each in instrument.bounds), "+Inf"]
            buckets = list(zip(bounds, counts, strict=True))
            family.add_metric(instrument.labels, buckets, amount / metric.per_unit)
        else:
            for labels, number in instrument.total(memory.all()).items():
                # Most combinations of route, method and status never occur.
                if number or metric is not table.HTTP_REQUESTS:
                    family.add_metric(labels, number)


def _largest(families: Mapping[str, int]) -> Mapping[str, int]:
    """Return the number of devices of the 50 largest families, and of all others together."""
    counted = Counter(families)
    shown = dict(counted.most_common(_MOST_FAMILIES))
    rest = counted.total() - sum(shown.values())
    return shown | {_REST: shown.get(_REST, 0) + rest} if rest else shown


def _served_certificate(path: Path | None) -> x509.Certificate | None:
    """Return the certificate in a PEM file, or None if it cannot be read.

    The file may be newer than the certificate in use, which SIGHUP replaces.
    """
    try:
        return None if path is None else x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None  # loading it for TLS has logged the error
