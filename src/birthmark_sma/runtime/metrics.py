"""The table of all metrics: the only place that names a metric, its type, labels and help.

From it `web.api.prometheus` makes /metrics, `checks.reference_pages` the list in docs/metrics.md,
and `runtime.shared_memory_metrics` registers what is counted in shared memory. To add a metric, add
a row and count it: in `authority.server_metrics` (authority) or `web.middleware.request_metrics`
(HTTP) if each process counts it, in `web.api.prometheus` if it is read when Prometheus asks.

Names and labels are public: alerts and dashboards use them.
"""

from typing import Literal, NamedTuple

NANOSECONDS = 1_000_000_000


class Metric(NamedTuple):
    """A row of the table. A counter's samples have the suffix `_total`."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    per_unit: int = 1
    """By what the counted integers are divided: durations are counted in nanoseconds."""


BUILD_INFO = Metric(
    "sma_build_info", "gauge", ("version", "python", "database"), "The running program; always 1."
)
WORKERS = Metric("sma_workers", "gauge", (), "Processes that serve.")
LOG_LINES_LEFT_OUT = Metric(
    "sma_log_lines_left_out",
    "counter",
    (),
    "Log lines that were dropped because nobody read the log or the disk was full.",
)
DATABASE_UP = Metric("sma_database_up", "gauge", (), "1 if the database responds, else 0.")
SQLITE_WAL_BYTES = Metric(
    "sma_sqlite_wal_bytes",
    "gauge",
    (),
    "Size of SQLite's write-ahead log. It grows while a program reads for long. No value on"
    " PostgreSQL.",
)
VERDICTS = Metric(
    "sma_verdicts",
    "counter",
    ("verdict", "reason"),
    "Validated camera tokens of all processes and servers, from the database.",
)
REPEATS = Metric(
    "sma_repeats",
    "counter",
    ("kind",),
    "Camera tokens that had been submitted before, by kind of repeat, from the database.",
)
DEVICES = Metric(
    "sma_devices",
    "gauge",
    ("family",),
    "Registered devices by family: the 50 largest, and (others), from the database.",
)
HTTP_REQUESTS = Metric(
    "sma_http_requests",
    "counter",
    ("route", "method", "status"),
    "Responses. The route unknown is a path without a route; the status none means that the caller"
    " left before the response.",
)
HTTP_REQUEST_DURATION = Metric(
    "sma_http_request_duration_seconds",
    "histogram",
    ("route",),
    "Time from a request to its response.",
    NANOSECONDS,
)
ACCESS_REFUSALS = Metric(
    "sma_access_refusals",
    "counter",
    ("reason",),
    "Requests that were refused for their credential, scope or host name.",
)
BATCH_ITEMS = Metric(
    "sma_batch_items", "histogram", ("writer",), "Camera tokens or devices in one commit."
)
BATCH_WORK = Metric(
    "sma_batch_work_seconds",
    "histogram",
    ("writer",),
    "Time of the work on a batch before its commit.",
    NANOSECONDS,
)
BATCH_COMMIT = Metric(
    "sma_batch_commit_seconds",
    "histogram",
    ("writer",),
    "Time of a commit, with the last statement of the batch.",
    NANOSECONDS,
)
QUEUE_ITEMS = Metric(
    "sma_queue_items", "gauge", ("writer",), "Camera tokens or devices that wait for a writer."
)
POOL_REFUSALS = Metric(
    "sma_pool_refusals",
    "counter",
    ("writer",),
    "Camera tokens or devices that were refused because the queue was full.",
)
OLDEST_ITEM = Metric(
    "sma_oldest_item_seconds",
    "gauge",
    ("writer",),
    "Age of the oldest camera token or device that waits for its commit; 0 if none waits.",
    NANOSECONDS,
)
LAST_COMMIT = Metric(
    "sma_last_commit_timestamp_seconds",
    "gauge",
    ("writer",),
    "Unix time of the newest commit of camera tokens or devices; 0 if there was none.",
    NANOSECONDS,
)
FAILING_WORKERS = Metric(
    "sma_failing_workers",
    "gauge",
    ("writer",),
    "Processes whose last write failed, or hangs. While there is one, /health/ready says 503.",
)
BATCH_FAILURES = Metric(
    "sma_batch_failures",
    "counter",
    ("writer", "fault"),
    "Batches that failed with a database error, by kind of error.",
)
QUEUE_LIMIT_ITEMS = Metric(
    "sma_queue_limit_items", "gauge", (), "Camera tokens that may wait, over all processes."
)
PROVISIONINGS = Metric(
    "sma_provisionings", "counter", ("outcome",), "Requests to provision a device, by outcome."
)
RENEWALS = Metric(
    "sma_renewals",
    "counter",
    ("outcome",),
    "Requests to renew a device certificate, by outcome. `renewed` counts new certificates.",
)
KEY_TABLE_TOKENS = Metric(
    "sma_key_table_tokens",
    "counter",
    ("tables",),
    "Camera tokens with a valid table and key index, by range of key tables.",
)
TABLE_OVERLAPS_OPEN = Metric(
    "sma_table_overlaps_open",
    "gauge",
    (),
    "Key tables that were rotated and whose earlier key is still accepted, from the database.",
)
RATE_LIMIT_REFUSALS = Metric(
    "sma_rate_limit_refusals", "counter", ("kind",), "Refusals by rate limits, by kind of limit."
)
RATE_STORE_AWAY_WORKERS = Metric(
    "sma_rate_store_away_workers",
    "gauge",
    (),
    "Processes that count rate limits alone because Redis is unavailable.",
)
RATE_STORE_LOSSES = Metric(
    "sma_rate_store_losses",
    "counter",
    (),
    "How often Redis became unavailable to a process, over all processes.",
)
OCSP_CERTIFICATES = Metric(
    "sma_ocsp_certificates",
    "counter",
    ("status", "source"),
    "Certificates whose status OCSP responses told, by status and by whether the response was"
    " cached or signed.",
)
OCSP_ERRORS = Metric(
    "sma_ocsp_errors",
    "counter",
    ("status",),
    "OCSP responses that are errors, by the status of the response.",
)
OCSP_RESPONDER_EXPIRY = Metric(
    "sma_ocsp_responder_expiry_timestamp_seconds",
    "gauge",
    (),
    "Unix time at which the first OCSP responder certificate of all processes expires; 0 if there"
    " is none.",
)
CERTIFICATE_EXPIRY = Metric(
    "sma_certificate_expiry_timestamp_seconds",
    "gauge",
    ("certificate",),
    "Unix time at which the root, intermediate or TLS certificate of this server expires.",
)
DEVICE_CERTIFICATES_EXPIRING = Metric(
    "sma_device_certificates_expiring",
    "gauge",
    ("within",),
    "Certificates of active and suspended devices that end within 30d or 90d, or have expired in"
    " the last 90 days. Up to 100,000 each, counted once a minute, from the database.",
)

METRICS = tuple(each for each in tuple(globals().values()) if isinstance(each, Metric))
"""All rows, in the order of this file and of /metrics."""
