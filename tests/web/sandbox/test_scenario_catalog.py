"""What can be asked of a sandbox: the list itself, and how it is read."""

import re
from pathlib import Path

import pytest

from birthmark_sma.authority.sandbox.verdicts import (
    DELIVERED,
    FIRST_SCRIPTED_TABLE,
    VERDICTS,
    scripted_reason,
)
from birthmark_sma.protocol.verdict import Reason
from birthmark_sma.web.sandbox import scenario_catalog
from birthmark_sma.web.sandbox.scenario_catalog import UnknownScenarioError


def test_every_verdict_can_be_had() -> None:
    """Each reason of the authority has a table id, and no other one."""
    assert sorted(VERDICTS.values()) == sorted(Reason)
    assert {VERDICTS[each] for each in VERDICTS} == set(Reason)


def test_names_tables_and_serials_are_unique() -> None:
    names = [each.name for each in scenario_catalog.ALL]
    tables = [each.table_id for each in scenario_catalog.ALL if each.table_id is not None]
    assert len(set(names)) == len(names)
    assert len(set(tables)) == len(tables)
    assert min(tables) >= FIRST_SCRIPTED_TABLE
    assert set(tables) >= set(DELIVERED)


def test_scripts_that_deliver_pass() -> None:
    assert {scripted_reason(each) for each in DELIVERED} == {Reason.GENUINE}
    assert scripted_reason(FIRST_SCRIPTED_TABLE - 1) is None
    assert scripted_reason(9_429) is None


@pytest.mark.parametrize("scenario", scenario_catalog.ALL, ids=lambda each: each.name)
def test_each_is_found_by_what_its_description_says(scenario: scenario_catalog.Scenario) -> None:
    """/sandbox tells nothing that does not work."""
    told = scenario.as_json()
    number = 0 if scenario.number is None else scenario.number.default
    expected = scenario_catalog.Asked(scenario, number)
    assert (
        scenario_catalog.by_header(told["header"].removeprefix(f"{scenario_catalog.HEADER}: "))
        == expected
    )
    assert scenario_catalog.by_header(scenario.name) == expected
    if "table_id" in told:
        token = {"table_id": told["table_id"], "key_index": 0}
        assert scenario_catalog.by_token(token) == expected
    if "device_serial" in told:
        alone = told["device_serial"].partition(" ")[0]
        assert scenario_catalog.by_serial(alone) == expected
        assert scenario_catalog.by_serial(f"{alone}-17") == expected
        assert scenario_catalog.by_serial(f"{alone}17") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rate-limit",
        "RATE-LIMITED",
        "rate-limited; seconds=0",
        "rate-limited; seconds=3601",
        "rate-limited; seconds=",
        "rate-limited; seconds=1.5",
        "rate-limited; times=1",
        "rate-limited; seconds=99999999999999999999",
        "pass; seconds=1",
        "clock; days=-991",
        "pass, cut",
        "slow; seconds=1; seconds=2",
        "x" * 10_000,
    ],
)
def test_a_header_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(UnknownScenarioError) as refused:
        scenario_catalog.by_header(text)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "token",
    [
        None,
        [],
        "9000",
        {},
        {"table_id": 9_000},
        {"table_id": True, "key_index": 0},
        {"table_id": "9000", "key_index": 0},
        {"table_id": 9_000.0, "key_index": 0},
        {"table_id": 8_999, "key_index": 0},
        {"table_id": 9_999, "key_index": 0},
    ],
)
def test_tokens_that_ask_for_nothing(token: object) -> None:
    assert scenario_catalog.by_token(token) is None


def test_the_key_index_is_the_number_within_bounds() -> None:
    def number(index: int) -> int:
        found = scenario_catalog.by_token({"table_id": 9_900, "key_index": index})
        assert found is not None
        return found.number

    assert [number(each) for each in (-1, 0, 1, 60, 61, 10**30)] == [5, 5, 1, 60, 60, 60]


@pytest.mark.parametrize("serial", [None, 7, "", "sandbox-cut", "SANDBOX", "SANDBOX-", "camera-1"])
def test_serials_that_ask_for_nothing(serial: object) -> None:
    assert scenario_catalog.by_serial(serial) is None


def test_the_guide_lists_every_scenario() -> None:
    """docs/sandbox.md has each by its name, with its table id in the same row, and no other id."""
    guide = (Path(__file__).parents[3] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d{4}) \| `([a-z-]+)", guide, re.MULTILINE)
    expected = {(str(each.table_id), each.name) for each in scenario_catalog.ALL if each.table_id}
    assert set(rows) == expected
    for each in scenario_catalog.ALL:
        assert re.search(rf"`{each.name}[`;]", guide), each.name
