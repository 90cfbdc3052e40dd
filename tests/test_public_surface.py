"""The public surface is the recorded one, and a difference is named."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from checks.public_surface.comparison import describe_differences, make_message
from checks.public_surface.surface import FOLDER, KINDS, compare, path_of


@pytest.mark.usefixtures("full_derivation_cost")
@pytest.mark.parametrize("kind", KINDS)
def test_the_public_surface_is_the_recorded_one(kind: str) -> None:
    differences = compare(kind)
    assert not differences, make_message(kind, differences)


def test_every_file_belongs_to_a_kind() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


def rename_a_flag(surface: dict[str, Any]) -> None:
    options = surface["sma serve"]["options"]
    options["--bind"] = options.pop("--host")


def change_a_default(surface: dict[str, Any]) -> None:
    surface["settings"]["port"]["default"] = 8001


def drop_a_label(surface: dict[str, Any]) -> None:
    surface["sma_batch_failures"]["labels"].remove("fault")


def remove_a_status(surface: dict[str, Any]) -> None:
    del surface["document"]["paths"]["/health"]["get"]["responses"]["503"]


def reword_an_option(surface: dict[str, Any]) -> None:
    surface["commands"]["sma serve"]["parameters"]["--port"] = "The port."


CHANGES: list[tuple[str, Callable[[dict[str, Any]], None], list[str]]] = [
    (
        "command_line",
        rename_a_flag,
        [
            "added: sma serve > options > --bind > environment = 'SMA_HOST'",
            "removed: sma serve > options > --host > environment (was 'SMA_HOST')",
        ],
    ),
    ("settings", change_a_default, ["changed: settings > port > default: 8000 -> 8001"]),
    (
        "metrics",
        drop_a_label,
        ["changed: sma_batch_failures > labels: without ['fault']"],
    ),
    (
        "openapi",
        remove_a_status,
        ["removed: document > paths > /health > get > responses > 503 > "],
    ),
    ("prose", reword_an_option, ["changed: commands > sma serve > parameters > --port: "]),
]


@pytest.mark.parametrize(
    ("kind", "change", "lines"), CHANGES, ids=[change.__name__ for _, change, _ in CHANGES]
)
def test_a_change_is_named(
    kind: str, change: Callable[[dict[str, Any]], None], lines: list[str]
) -> None:
    recorded = json.loads(path_of(kind).read_text(encoding="utf-8"))
    changed = copy.deepcopy(recorded)
    change(changed)
    message = make_message(kind, describe_differences(recorded, changed))
    for line in lines:
        assert line in message
    assert f"tests/public_surface/{kind}.json" in message
    assert "make public-surface" in message
    assert describe_differences(recorded, recorded) == []


def test_a_long_message_says_how_much_it_leaves_out() -> None:
    differences = describe_differences({}, {f"name {number}": 1 for number in range(100)})
    message = make_message("metrics", differences)
    assert len(differences) == 100
    assert "and 40 more" in message


def test_what_a_container_loses_is_named() -> None:
    """An entry that becomes empty, or another type, is no less a change."""
    assert describe_differences({"a": {"b": 1}}, {"a": {}}) == [
        "added: a = {}",
        "removed: a > b (was 1)",
    ]
    assert describe_differences({"a": False}, {"a": 0}) == ["changed: a: False -> 0"]


def test_what_a_list_loses_and_gets_is_named() -> None:
    assert describe_differences({"a": [1, 2]}, {"a": [2, 3]}) == [
        "changed: a: without [1], with [3]"
    ]
    assert describe_differences({"a": [1, 2]}, {"a": [2, 1]}) == ["changed: a: other order: [2, 1]"]
    assert describe_differences({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == [
        "changed: a > [0] > b: 1 -> 2"
    ]
