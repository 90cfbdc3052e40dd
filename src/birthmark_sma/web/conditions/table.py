"""The table of conditions: the only place that names a rule, its threshold and its advice.

`checks.reference_pages` makes deploy/prometheus/alerts.yml from it, and `watch` evaluates it in the
server, for the health page of the dashboard. Each rule has a section in docs/operate/runbooks.md.
The PromQL and the check of a rule must say the same: the tests compare them by promtool.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from birthmark_sma.web.conditions.samples import MINUTE, History

_DAY = 86_400
_OUTAGES = "failed|unavailable|overloaded"
_UNITS = {"s": 1.0, "m": MINUTE, "h": 60 * MINUTE}
_LABEL = "{{ $labels."


class Severity(StrEnum):
    """The severities of alerts."""

    WARNING = "warning"
    CRITICAL = "critical"


class Condition(NamedTuple):
    """A rule. `holds_for` and `summary` are as in Prometheus: a duration, and a template.

    `check` returns the values of the label in `summary` for which the condition holds, and an empty
    text for a rule without one. It is None for what a server cannot see of itself.
    """

    name: str
    severity: Severity
    holds_for: str
    expression: str
    summary: str
    action: str
    check: Callable[[History], Sequence[str]] | None

    @property
    def seconds(self) -> float:
        """Return the time for which the condition must hold before the alert fires."""
        return float(self.holds_for[:-1]) * _UNITS[self.holds_for[-1]] if self.holds_for else 0.0

    def summarize(self, labels: Sequence[str]) -> str:
        """Return the summary with these values of its label."""
        before, placeholder, rest = self.summary.partition(_LABEL)
        if not placeholder:
            return self.summary
        return before + ", ".join(labels) + rest.partition("}}")[2]


def _one(holds: bool) -> Sequence[str]:  # noqa: FBT001
    return [""] if holds else []


def _above(values: Mapping[str, float], threshold: float) -> Sequence[str]:
    return sorted(label for label, value in values.items() if value > threshold)


def _faster(seen: History, name: str, by: str, seconds: float) -> Sequence[str]:
    """Return the labels whose counters rise by more than 1 per second."""
    labels = seen.rises(name, by, seconds)
    return _above({each: seen.rate(name, seconds, **{by: each}) for each in labels}, 1)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _ends(seen: History, days: int, **only: str) -> Sequence[str]:
    """Return the certificates that end within so many days."""
    ends = seen.largest("sma_certificate_expiry_timestamp_seconds", "certificate", **only)
    return sorted(name for name, end in ends.items() if end - seen.time < days * _DAY)


def _nothing_committed(seen: History) -> Sequence[str]:
    waiting = _above(seen.largest("sma_oldest_item_seconds", "writer"), 0)
    commits = seen.largest("sma_last_commit_timestamp_seconds", "writer")
    return [each for each in waiting if each in commits and seen.time - commits[each] > MINUTE]


def _errors(seen: History) -> Sequence[str]:
    rates = {
        status: rate
        for status, rate in seen.rises("sma_http_requests_total", "status", 5 * MINUTE).items()
        if rate > 0
    }
    failed = sum(rate for status, rate in rates.items() if status.startswith("5"))
    return _one(_share(failed, sum(rates.values())) > 0.01)


def _slow(seen: History) -> Sequence[str]:
    seconds = seen.quantile(
        0.99, "sma_http_request_duration_seconds", 5 * MINUTE, route="/api/v1/validate/nuc"
    )
    return _one(seconds is not None and seconds > 1)


def _queue_filling(seen: History) -> Sequence[str]:
    waiting = seen.sum("sma_queue_items", writer="validation")
    return _one(waiting > 0.5 * seen.sum("sma_queue_limit_items"))


def _many_fails(seen: History) -> Sequence[str]:
    fails = seen.rise("sma_verdicts_total", 15 * MINUTE, verdict="FAIL")
    return _one(_share(fails, seen.rise("sma_verdicts_total", 15 * MINUTE)) > 0.2)


def _ocsp_responder(seen: History) -> Sequence[str]:
    ends = seen.now("sma_ocsp_responder_expiry_timestamp_seconds").values()
    return _one(any(0 < end < seen.time + 2 * _DAY for end in ends))


CONDITIONS = (
    Condition(
        "SmaDown",
        Severity.CRITICAL,
        "1m",
        'up{job="birthmark-sma"} == 0',
        "Nothing answers at {{ $labels.instance }}.",
        "See whether `sma serve` runs, and the end of its log.",
        None,
    ),
    Condition(
        "SmaDatabaseDown",
        Severity.CRITICAL,
        "1m",
        "sma_database_up == 0",
        "The database does not answer; nothing is validated.",
        "The log of `sma serve` says why.",
        lambda seen: _one(seen.now("sma_database_up").get((), 1) == 0),
    ),
    Condition(
        "SmaDatabaseRefuses",
        Severity.CRITICAL,
        "1m",
        "sum by (instance, fault) (increase(sma_batch_failures_total[5m])) > 0",
        "The database does not take what is to be recorded ({{ $labels.fault }}).",
        "The log of `sma serve` says what to do about it.",
        lambda seen: _above(seen.rises("sma_batch_failures_total", "fault", 5 * MINUTE), 0),
    ),
    Condition(
        "SmaNotReady",
        Severity.CRITICAL,
        "30s",
        "sum by (instance, writer) (sma_failing_workers) > 0",
        "The {{ $labels.writer }} writer cannot write; /health/ready says 503.",
        "The log of `sma serve` says why. It becomes ready by itself.",
        lambda seen: _above(seen.largest("sma_failing_workers", "writer"), 0),
    ),
    Condition(
        "SmaItemsWait",
        Severity.WARNING,
        "30s",
        "max by (instance, writer) (sma_oldest_item_seconds) > 3",
        "Something has waited for more than 3 seconds for the {{ $labels.writer }} writer.",
        "Look for locks and slow commits in the database.",
        lambda seen: _above(seen.largest("sma_oldest_item_seconds", "writer"), 3),
    ),
    Condition(
        "SmaNothingCommitted",
        Severity.CRITICAL,
        "30s",
        "max by (instance, writer) (sma_oldest_item_seconds) > 0 and time() - max by"
        " (instance, writer) (sma_last_commit_timestamp_seconds) > 60",
        "The {{ $labels.writer }} writer has committed nothing for a minute, and something waits.",
        "Look for what the writer waits for in the database.",
        _nothing_committed,
    ),
    Condition(
        "SmaWalGrows",
        Severity.WARNING,
        "5m",
        "sma_sqlite_wal_bytes > 67108864",
        "SQLite's write-ahead log is longer than 64 MiB.",
        "Find the program that reads the database file all the time.",
        lambda seen: _one(seen.sum("sma_sqlite_wal_bytes") > 67108864),
    ),
    Condition(
        "SmaLogNotRead",
        Severity.WARNING,
        "",
        "sum by (instance) (increase(sma_log_lines_left_out_total[15m])) > 0",
        "Lines of the log are left out.",
        "See what reads the output of `sma serve`, and whether its disk is full.",
        lambda seen: _one(seen.rise("sma_log_lines_left_out_total", 15 * MINUTE) > 0),
    ),
    Condition(
        "SmaErrors",
        Severity.CRITICAL,
        "5m",
        'sum by (instance) (rate(sma_http_requests_total{status=~"5.."}[5m])) / sum by'
        " (instance) (rate(sma_http_requests_total[5m])) > 0.01",
        "More than one request in a hundred is answered with an error of the server.",
        "Search the log for the request ids of those with status 500 or 503.",
        _errors,
    ),
    Condition(
        "SmaSlow",
        Severity.WARNING,
        "10m",
        "histogram_quantile(0.99, sum by (le, instance) (rate("
        ' sma_http_request_duration_seconds_bucket{route="/api/v1/validate/nuc"}[5m])))'
        " > 1",
        "One validation in a hundred takes longer than a second.",
        "Compare the time of commits with the queue; a slow disk shows in the former.",
        _slow,
    ),
    Condition(
        "SmaQueueFilling",
        Severity.WARNING,
        "1m",
        'sum by (instance) (sma_queue_items{writer="validation"}) > 0.5 * sum by'
        " (instance) (sma_queue_limit_items)",
        "Half of the places for waiting camera tokens are taken.",
        "The database does not keep up; soon callers are told 503.",
        _queue_filling,
    ),
    Condition(
        "SmaPoolRefusals",
        Severity.CRITICAL,
        "",
        "sum by (instance, writer) (increase(sma_pool_refusals_total[5m])) > 0",
        "Callers are turned away as too much waits for the {{ $labels.writer }} writer.",
        "Add processes or a quicker database, or lower the rates.",
        lambda seen: _above(seen.rises("sma_pool_refusals_total", "writer", 5 * MINUTE), 0),
    ),
    Condition(
        "SmaManyFails",
        Severity.WARNING,
        "15m",
        'sum(rate(sma_verdicts_total{verdict="FAIL"}[15m])) /'
        " sum(rate(sma_verdicts_total[15m])) > 0.2",
        "More than one verdict in five is a FAIL.",
        "`/stats` tells the reasons, the audit trail who brings them.",
        _many_fails,
    ),
    Condition(
        "SmaRepeats",
        Severity.WARNING,
        "15m",
        "sum by (kind) (rate(sma_repeats_total[15m])) > 1",
        "Camera tokens come again and again ({{ $labels.kind }}).",
        "The audit trail names the callers.",
        lambda seen: _faster(seen, "sma_repeats_total", "kind", 15 * MINUTE),
    ),
    Condition(
        "SmaGuessing",
        Severity.WARNING,
        "5m",
        'sum by (instance) (rate(sma_access_refusals_total{reason="unauthenticated"}[5m])) > 1',
        "Somebody tries keys, or goes on with one that is no longer in force.",
        "The log has the addresses of requests with status 401.",
        lambda seen: _one(
            seen.rate("sma_access_refusals_total", 5 * MINUTE, reason="unauthenticated") > 1
        ),
    ),
    Condition(
        "SmaRateLimited",
        Severity.WARNING,
        "15m",
        "sum by (instance, kind) (rate(sma_rate_limit_refusals_total[15m])) > 1",
        "Callers meet the limit of {{ $labels.kind }}.",
        "Find out whether the limit is too low, or a caller too eager.",
        lambda seen: _faster(seen, "sma_rate_limit_refusals_total", "kind", 15 * MINUTE),
    ),
    Condition(
        "SmaRateStoreAway",
        Severity.WARNING,
        "5m",
        "max by (instance) (sma_rate_store_away_workers) > 0",
        "The shared store of rate limits does not answer; each server counts by itself.",
        "See to the Redis that SMA_RATE_STORE names.",
        lambda seen: _one(seen.sum("sma_rate_store_away_workers") > 0),
    ),
    Condition(
        "SmaProvisioningFails",
        Severity.WARNING,
        "",
        "sum by (instance)"
        ' (increase(sma_provisionings_total{outcome=~"failed|unavailable|overloaded"}[15m]))'
        " > 0",
        "Devices could not be provisioned.",
        "The log says why; the devices may ask again.",
        lambda seen: _one(seen.rise("sma_provisionings_total", 15 * MINUTE, outcome=_OUTAGES) > 0),
    ),
    Condition(
        "SmaRenewalsFail",
        Severity.WARNING,
        "",
        "sum by (instance)"
        ' (increase(sma_renewals_total{outcome=~"failed|unavailable|overloaded"}[15m]))'
        " > 0",
        "Device certificates could not be renewed.",
        "The log says why; the devices ask again.",
        lambda seen: _one(seen.rise("sma_renewals_total", 15 * MINUTE, outcome=_OUTAGES) > 0),
    ),
    Condition(
        "SmaCertificateExpires",
        Severity.WARNING,
        "",
        'sma_certificate_expiry_timestamp_seconds{certificate="tls"} - time() < 14 * 86400',
        "The server's TLS certificate expires within two weeks.",
        "Renew it and send SIGHUP.",
        lambda seen: _ends(seen, 14, certificate="tls"),
    ),
    Condition(
        "SmaCaExpires",
        Severity.CRITICAL,
        "",
        'sma_certificate_expiry_timestamp_seconds{certificate=~"root|intermediate"} -'
        " time() < 180 * 86400",
        "The {{ $labels.certificate }} certificate expires within half a year.",
        "Nothing can be issued under it afterwards.",
        lambda seen: _ends(seen, 180, certificate="root|intermediate"),
    ),
    Condition(
        "SmaDeviceCertificatesExpire",
        Severity.WARNING,
        "1h",
        'max by (within) (sma_device_certificates_expiring{within=~"30d|expired"}) > 0',
        "Certificates of devices in use end within 30 days, or have expired ({{"
        " $labels.within }}).",
        "`sma devices list --expiring-within 30d` lists them.",
        lambda seen: _above(
            seen.largest("sma_device_certificates_expiring", "within", within="30d|expired"), 0
        ),
    ),
    Condition(
        "SmaOcspResponder",
        Severity.CRITICAL,
        "",
        "(sma_ocsp_responder_expiry_timestamp_seconds > 0) - time() < 2 * 86400",
        "The certificate of an OCSP responder was not renewed and expires within two days.",
        "The log says why. The clock and the intermediate's certificate are the usual reasons.",
        _ocsp_responder,
    ),
    Condition(
        "SmaOcspFails",
        Severity.WARNING,
        "5m",
        "sum by (instance, status)"
        ' (rate(sma_ocsp_errors_total{status=~"internal_error|try_later"}[5m])) > 0',
        "Verifiers get no answer by OCSP ({{ $labels.status }}).",
        "try_later is a database that does not answer; for internal_error see the log.",
        lambda seen: _above(
            seen.rises(
                "sma_ocsp_errors_total", "status", 5 * MINUTE, status="internal_error|try_later"
            ),
            0,
        ),
    ),
    Condition(
        "SmaRestarts",
        Severity.WARNING,
        "",
        "changes(sma_workers[15m]) > 3",
        "Processes of the server end and are started again.",
        "Their log says why; memory is the usual reason.",
        lambda seen: _one(seen.changes("sma_workers", 15 * MINUTE) > 3),
    ),
)
"""All rules, in the order of the runbooks."""
