"""Each condition holds for the server if and only if it holds for Prometheus, with the same series.

promtool evaluates the PromQL of the rules over the same samples that the server's checks get.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import pytest
import yaml

from birthmark_sma.web.conditions.samples import History, Snapshot
from birthmark_sma.web.conditions.table import CONDITIONS
from tests.support.deployment.tools import run_tool

MINUTES = 16
NOW = MINUTES * 60
DAY = 86_400
Series = Mapping[str, Sequence[float]]
"""The values of each series, a minute apart, by the name that PromQL gives it."""


def still(value: float) -> list[float]:
    """Return a value that does not change."""
    return [value] * (MINUTES + 1)


def rising(a_minute: float, *, begins: float = 100) -> list[float]:
    """Return a counter that rises by so much each minute."""
    return [begins + a_minute * minute for minute in range(MINUTES + 1)]


EITHER = [still(5), rising(1)]
CASES: dict[str, list[Series]] = {
    "SmaDatabaseDown": [{"sma_database_up": still(each)} for each in (0, 1)],
    "SmaDatabaseRefuses": [
        {'sma_batch_failures_total{writer="validation",fault="full"}': each} for each in EITHER
    ],
    "SmaNotReady": [{'sma_failing_workers{writer="validation"}': still(n)} for n in (0, 1)],
    "SmaItemsWait": [{'sma_oldest_item_seconds{writer="validation"}': still(n)} for n in (3, 3.1)],
    "SmaNothingCommitted": [
        {
            'sma_oldest_item_seconds{writer="validation"}': still(oldest),
            'sma_last_commit_timestamp_seconds{writer="validation"}': still(NOW - ago),
            'sma_last_commit_timestamp_seconds{writer="provisioning"}': still(0),
        }
        for oldest, ago in product((0, 2), (30, 61))
    ],
    "SmaWalGrows": [{"sma_sqlite_wal_bytes": still(n)} for n in (2**26, 2**26 + 1)],
    "SmaLogNotRead": [{"sma_log_lines_left_out_total": each} for each in EITHER],
    "SmaErrors": [
        {
            'sma_http_requests_total{route="/",method="GET",status="200"}': rising(1_000),
            'sma_http_requests_total{route="/",method="GET",status="404"}': rising(500),
            'sma_http_requests_total{route="/",method="GET",status="503"}': rising(failed),
        }
        for failed in (0, 10, 40)
    ],
    "SmaSlow": [
        {
            f'sma_http_request_duration_seconds_bucket{{route="{route}",le="{le}"}}': rising(n)
            for route, le, n in (
                ("/api/v1/validate/nuc", "1.0", quick),
                ("/api/v1/validate/nuc", "2.0", 1_000),
                ("/api/v1/validate/nuc", "+Inf", 1_000),
                ("/stats", "1.0", 0),
                ("/stats", "+Inf", 1_000),
            )
        }
        for quick in (980, 995)
    ],
    "SmaQueueFilling": [
        {
            'sma_queue_items{writer="validation"}': still(n),
            'sma_queue_items{writer="provisioning"}': still(9_999),
            "sma_queue_limit_items": still(1_000),
        }
        for n in (500, 501)
    ],
    "SmaPoolRefusals": [{'sma_pool_refusals_total{writer="validation"}': each} for each in EITHER],
    "SmaManyFails": [
        {
            'sma_verdicts_total{verdict="PASS",reason="genuine"}': rising(70),
            'sma_verdicts_total{verdict="FAIL",reason="not_opened"}': rising(fails),
        }
        for fails in (0, 15, 20)
    ],
    "SmaRepeats": [{'sma_repeats_total{kind="replayed"}': rising(n)} for n in (50, 70)],
    "SmaGuessing": [
        {f'sma_access_refusals_total{{reason="{reason}"}}': rising(n)}
        for reason, n in (("unauthenticated", 50), ("unauthenticated", 70), ("misdirected", 70))
    ],
    "SmaRateLimited": [
        {'sma_rate_limit_refusals_total{kind="validate"}': rising(n)} for n in (50, 70)
    ],
    "SmaRateStoreAway": [{"sma_rate_store_away_workers": still(n)} for n in (0, 1)],
    "SmaProvisioningFails": [
        {f'sma_provisionings_total{{outcome="{outcome}"}}': rising(1)}
        for outcome in ("failed", "unavailable", "overloaded", "conflict")
    ],
    "SmaRenewalsFail": [
        {f'sma_renewals_total{{outcome="{outcome}"}}': rising(1)}
        for outcome in ("failed", "unavailable", "overloaded", "unproven")
    ],
    "SmaCertificateExpires": [
        {f'sma_certificate_expiry_timestamp_seconds{{certificate="{name}"}}': still(NOW + ends)}
        for name, ends in (("tls", 14 * DAY - 1), ("tls", 14 * DAY + 1), ("root", 0))
    ],
    "SmaCaExpires": [
        {f'sma_certificate_expiry_timestamp_seconds{{certificate="{name}"}}': still(NOW + ends)}
        for name, ends in (("root", 180 * DAY - 1), ("intermediate", 180 * DAY + 1), ("tls", 0))
    ],
    "SmaDeviceCertificatesExpire": [
        {f'sma_device_certificates_expiring{{within="{within}"}}': still(n)}
        for within, n in (("30d", 0), ("30d", 1), ("expired", 1), ("90d", 1))
    ],
    "SmaOcspResponder": [
        {"sma_ocsp_responder_expiry_timestamp_seconds": still(end)}
        for end in (0, NOW + 2 * DAY - 1, NOW + 2 * DAY + 1)
    ],
    "SmaOcspFails": [
        {f'sma_ocsp_errors_total{{status="{status}"}}': rising(1)}
        for status in ("internal_error", "try_later", "malformed_request")
    ],
    "SmaRestarts": [
        {
            "sma_workers": [
                2 - (minute % 2 if minute < changes else changes % 2) for minute in range(17)
            ]
        }
        for changes in (0, 3, 4, 8)
    ],
}


def holds(name: str, series: Series) -> bool:
    """Return True if the server says that a condition holds, at the end of these series."""
    history = History()
    for minute in range(MINUTES + 1):
        samples: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for key, values in series.items():
            sample, _, labels = key.partition("{")
            pairs = (pair.split("=", 1) for pair in labels.rstrip("}").split(",") if pair)
            named = tuple(sorted((label, json.loads(value)) for label, value in pairs))
            samples.setdefault(sample, {})[named] = values[minute]
        history.add(Snapshot(minute * 60.0, samples))
    [condition] = [each for each in CONDITIONS if each.name == name]
    assert condition.check is not None
    return bool(condition.check(history))


def test_every_condition_has_cases_of_both_kinds() -> None:
    assert CASES.keys() == {each.name for each in CONDITIONS if each.check is not None}
    for name, cases in CASES.items():
        assert {holds(name, each) for each in cases} == {True, False}, name


@pytest.mark.parametrize("name", CASES)
def test_promql_says_the_same(name: str, tmp_path: Path) -> None:
    """The rule is asked without its `for`, at the end of the series."""
    [condition] = [each for each in CONDITIONS if each.name == name]
    rule = {"alert": name, "expr": condition.expression}
    rules = {"groups": [{"name": "all", "rules": [rule]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    tests = []
    for series in CASES[name]:
        count = f"count({condition.expression})"
        expected = [{"labels": "{}", "value": 1}] if holds(name, series) else []
        tests.append(
            {
                "interval": "1m",
                "input_series": [
                    {"series": key, "values": " ".join(map(str, values))}
                    for key, values in series.items()
                ],
                "promql_expr_test": [
                    {"expr": count, "eval_time": f"{MINUTES}m", "exp_samples": expected}
                ],
            }
        )
    (tmp_path / "tests.yml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    said = run_tool("promtool", "test", "rules", str(tmp_path / "tests.yml"))
    assert said.returncode == 0, said.stdout
