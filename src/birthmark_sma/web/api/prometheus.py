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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from fastapi import APIRouter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response

from birthmark_sma import __version__
from birthmark_sma.authority import server_metrics
from birthmark_sma.authority.authority import Authority
from birthmark_sma.authority.operations import statistics
from birthmark_sma.authority.operations.statistics import Totals
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.runtime.shared_memory_metrics import Histogram
from birthmark_sma.web.api import openapi
from birthmark_sma.web.api.metrics_cache import MetricsCache
from birthmark_sma.web.middleware.request_metrics import (
    ACCESS_REFUSALS,
    LATENCIES,
    LOG_LINES_LEFT_OUT,
    REQUESTS,
    RequestMetrics,
)

PATH = "/metrics"
_COPY_SECONDS = 1.0  # a process that is killed loses at most this much of what it counted
# The callers that provision devices choose the names of families, so the labels are bounded.
_MOST_FAMILIES = 50
_REST = "(others)"
_SECOND = 1e9  # in nanoseconds

_log = logging.getLogger(__name__)

router = APIRouter(tags=["operate"])


@router.get(
    PATH,
    summary="Figures for Prometheus",
    description="In the text format 0.0.4. The figures are those of all processes of this server,"
    " and of verdicts and devices those of the database.",
    response_class=Response,
    responses={
        200: {
            "description": "The figures",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **openapi.problems(PATH, 429, 500),
    },
)
async def metrics(request: Request) -> Response:
    """Return the metrics, at most half a second old."""
    scrapes: MetricsCache[Totals] = request.app.state.scrapes
    return Response(await scrapes.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


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

    return MetricsCache(thread, lambda: statistics.count_totals(authority.database), phrase)


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

    def collect(self) -> Iterable[Metric]:
        """Yield every metric family. prometheus_client calls this when it makes the text."""
        yield from self._of_the_process()
        yield from self._of_the_database()
        yield from self._of_requests()
        yield from self._of_batches()
        yield from self._of_limits()
        yield from self._of_certificates()

    def _of_the_process(self) -> Iterator[Metric]:
        labels = {
            "version": __version__,
            "python": platform.python_version(),
            "database": self.authority.database.dialect_name,
        }
        build = GaugeMetricFamily("sma_build_info", "Which program this is.", labels=list(labels))
        build.add_metric(list(labels.values()), 1)
        yield build
        yield GaugeMetricFamily(
            "sma_workers", "Processes that serve.", value=len(self.traffic.shared_counters.alive())
        )
        yield _counted(
            "sma_log_lines_left_out",
            "Lines of the log that were left out as nobody read it, or the disk was full.",
            [],
            LOG_LINES_LEFT_OUT.total(self.traffic.shared_counters.all()),
        )

    def _of_the_database(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "sma_database_up", "Whether the database answers.", value=self.totals is not None
        )
        if self.totals is None:
            return
        verdicts = CounterMetricFamily(
            "sma_verdicts",
            "Camera tokens that were judged, by verdict and reason, in every process and run.",
            labels=["verdict", "reason"],
        )
        for reason in Reason:
            verdicts.add_metric([reason.verdict.value, reason.value], self.totals.reasons[reason])
        yield verdicts
        yield _counted(
            "sma_repeats",
            "Camera tokens that had come before, by kind of repeat.",
            ["kind"],
            {(kind.value,): self.totals.repeats[kind] for kind in Repeat},
        )
        devices = GaugeMetricFamily(
            "sma_devices", "Devices that are registered, by family.", labels=["family"]
        )
        for family, number in _largest(self.totals.devices).items():
            devices.add_metric([family], number)
        yield devices

    def _of_requests(self) -> Iterator[Metric]:
        shared_counters = self.traffic.shared_counters.all()
        requests = REQUESTS.total(shared_counters)
        yield _counted(
            "sma_http_requests",
            "Requests that were answered.",
            ["route", "method", "status"],
            {labels: number for labels, number in requests.items() if number},
        )
        latencies = HistogramMetricFamily(
            "sma_http_request_duration_seconds",
            "From a request to its answer.",
            labels=["route"],
        )
        for route, histogram in LATENCIES.items():
            _add(latencies, [route], histogram, shared_counters, _SECOND)
        yield latencies
        yield _counted(
            "sma_access_refusals",
            "Requests that were not let in.",
            ["reason"],
            ACCESS_REFUSALS.total(shared_counters),
        )

    def _of_batches(self) -> Iterator[Metric]:
        shared_counters, alive = self._sheets()
        writers = {
            "validation": server_metrics.VALIDATIONS,
            "provisioning": server_metrics.PROVISIONINGS,
        }
        items = HistogramMetricFamily(
            "sma_batch_items", "Camera tokens or devices that shared a commit.", labels=["writer"]
        )
        settling = HistogramMetricFamily(
            "sma_batch_work_seconds", "Work on a batch before its commit.", labels=["writer"]
        )
        committing = HistogramMetricFamily(
            "sma_batch_commit_seconds", "How long commits took.", labels=["writer"]
        )
        waiting = GaugeMetricFamily(
            "sma_queue_items", "Camera tokens or devices that wait.", labels=["writer"]
        )
        refused = CounterMetricFamily(
            "sma_pool_refusals", "What was turned away as too much waited.", labels=["writer"]
        )
        failed = CounterMetricFamily(
            "sma_batch_failures",
            "Batches that the database did not take, by what it said.",
            labels=["writer", "fault"],
        )
        for name, writer in writers.items():
            _add(items, [name], writer.items, shared_counters, 1)
            _add(settling, [name], writer.settling, shared_counters, _SECOND)
            _add(committing, [name], writer.committing, shared_counters, _SECOND)
            waiting.add_metric([name], writer.waiting.total(alive))
            refused.add_metric([name], writer.refused.total(shared_counters)[()])
            for (fault,), times in writer.failed.total(shared_counters).items():
                failed.add_metric([name, fault], times)
        yield from (items, settling, committing, waiting, refused, failed)
        yield GaugeMetricFamily(
            "sma_queue_limit_items",
            "Camera tokens that may wait, in all processes.",
            value=self.authority.settings.pool_limit * len(alive),
        )
        yield _counted(
            "sma_provisionings",
            "Requests to provision a device, by what became of them.",
            ["outcome"],
            server_metrics.OUTCOMES.total(shared_counters),
        )
        yield self._key_tables(shared_counters)

    def _key_tables(self, shared_counters: Sequence[memoryview]) -> Metric:
        tables = self.authority.table_sizes.tables
        step = server_metrics.tables_a_range(tables)
        used = server_metrics.TABLE_RANGES.total(shared_counters)
        return _counted(
            "sma_key_table_tokens",
            "Well-addressed camera tokens, by the range of key tables that they name.",
            ["tables"],
            {
                (f"{first}-{min(first + step, tables) - 1}",): used[str(first // step),]
                for first in range(0, tables, step)
            },
        )

    def _of_limits(self) -> Iterator[Metric]:
        shared_counters, alive = self._sheets()
        yield _counted(
            "sma_rate_limit_refusals",
            "Refusals for rate limits, by what was limited.",
            ["kind"],
            server_metrics.RATE_REFUSALS.total(shared_counters),
        )
        yield GaugeMetricFamily(
            "sma_rate_store_away_workers",
            "Processes that count by themselves as the shared store does not answer.",
            value=server_metrics.STORE_AWAY.total(alive),
        )
        yield _counted(
            "sma_rate_store_losses",
            "How often the shared store stopped answering, over all processes.",
            [],
            server_metrics.STORE_LOST.total(shared_counters),
        )

    def _of_certificates(self) -> Iterator[Metric]:
        certificates = {
            "root": self.authority.root,
            "intermediate": self.authority.issuer.certificate,
        }
        served = _served_certificate(self.authority.settings.tls_cert)
        if served is not None:
            certificates["tls"] = served
        expiry = GaugeMetricFamily(
            "sma_certificate_expiry_timestamp_seconds",
            "When a certificate of this server expires.",
            labels=["certificate"],
        )
        for name, certificate in certificates.items():
            expiry.add_metric([name], certificate.not_valid_after_utc.timestamp())
        yield expiry

    def _sheets(self) -> tuple[list[memoryview], list[memoryview]]:
        # Counters add up all rows, also those of dead processes, so that they never fall. Gauges
        # add up those of running processes.
        shared_counters = self.authority.figures.shared_counters
        return shared_counters.all(), shared_counters.alive()


def _counted(
    name: str, what: str, labels: Sequence[str], numbers: Mapping[tuple[str, ...], int]
) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for values, number in numbers.items():
        family.add_metric(values, number)
    return family


def _add(
    family: HistogramMetricFamily,
    labels: Sequence[str],
    histogram: Histogram,
    shared_counters: Sequence[memoryview],
    unit: float,
) -> None:
    # Prometheus's buckets are cumulative, as the counts of `total` are.
    counts, amount = histogram.total(shared_counters)
    bounds = [*(repr(bound / unit) for bound in histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(bounds, counts, strict=True)), amount / unit)


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
