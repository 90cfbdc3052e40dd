"""What each camera does when: drawn from a seed, and nothing else."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark_sma.errors import ConfigurationError
from birthmark_sma.simulation.camera_families import FAMILIES, families_by_name
from birthmark_sma.simulation.expected_outcomes import (
    BY_ONE_CAMERA,
    CLONES,
    REPLAYS,
    TAMPERING,
    Case,
)
from birthmark_sma.simulation.plan import Plan, Role, Terms, build_plan, plan_of_one

TERMS = Terms(cameras=50, seconds=20, rate=100, seed=7)


def test_a_seed_gives_one_plan_and_another_seed_another() -> None:
    assert build_plan(TERMS) == build_plan(TERMS)
    assert build_plan(TERMS) != build_plan(replace(TERMS, seed=8))


def test_the_rates_are_kept_to_the_picture() -> None:
    planned = build_plan(TERMS).planned()
    assert sum(planned.values()) == 2_000
    assert sum(planned[each] for each in TAMPERING) == 100
    assert {planned[each] for each in TAMPERING} == {10}
    assert sum(planned[each] for each in CLONES) == 40
    assert sum(planned[each] for each in REPLAYS) == 40


@settings(max_examples=60, deadline=None)
@given(
    terms=st.builds(
        Terms,
        cameras=st.integers(1, 30),
        seconds=st.floats(0.5, 100),
        rate=st.floats(0.01, 5),
        seed=st.integers(0, 2**32),
        aggregators=st.integers(1, 3),
        dual=st.floats(0, 1),
        day=st.booleans(),
        tampering=st.floats(0, 0.4),
        clones=st.floats(0, 0.3),
        replays=st.floats(0, 0.3),
        stolen=st.floats(0, 1),
        wrong_clocks=st.floats(0, 1),
        offline=st.floats(0, 1),
    )
)
def test_every_plan_can_be_played(terms: Terms) -> None:
    plan = build_plan(terms)
    assert [each.number for each in plan.cameras] == list(range(terms.cameras))
    assert [each.number for each in plan.pictures] == list(range(terms.pictures))
    assert [each.at for each in plan.pictures] == sorted(each.at for each in plan.pictures)
    assert any(each.role is Role.ORDINARY for each in plan.cameras)
    for each in plan.cameras:
        if each.stolen_at is not None and each.reported_at is not None:
            assert 0 < each.stolen_at < each.reported_at < terms.seconds
        assert each.offline is None or 0 < each.offline[0] < each.offline[1] < terms.seconds
        if each.role is Role.ORDINARY:
            assert abs(each.clock) + abs(each.drift) * terms.seconds <= 600
        elif each.role is not Role.STOLEN:
            assert abs(each.clock) >= 7_200
    check_pictures(plan)


def check_pictures(plan: Plan) -> None:
    for each in plan.pictures:
        camera = plan.cameras[each.camera]
        assert 0 <= each.at <= plan.terms.seconds
        assert each.to
        assert set(each.to) <= set(range(plan.terms.aggregators))
        assert (each.source is not None) == (each.case in REPLAYS)
        if each.source is not None:
            source = plan.pictures[each.source]
            assert source.number < each.number
            assert source.case is Case.GENUINE
            assert source.to == each.to
            borrowed = each.case is Case.BORROWED_CAMERA_TOKEN
            assert (source.camera != each.camera) == borrowed
            # A source that waits in a camera's queue would hold the replay up.
            assert plan.cameras[source.camera].offline is None
        if each.case is not Case.GENUINE and each.case is not Case.STOLEN:
            wrong_clock = each.case in {Case.FAST_CLOCK, Case.SLOW_CLOCK}
            assert wrong_clock == (camera.role in {Role.FAST, Role.SLOW})


def test_families_have_their_share_and_their_hours() -> None:
    plan = build_plan(Terms(cameras=100, seconds=24, rate=1000, seed=1))
    by_family = Counter(each.family for each in plan.cameras)
    assert by_family == {each.name: round(100 * each.share) for each in FAMILIES}
    at_night = Counter(plan.cameras[e.camera].family for e in plan.pictures if e.at < 5)
    at_noon = Counter(plan.cameras[e.camera].family for e in plan.pictures if 10 < e.at < 15)
    trail, phone = "Simulated Trail Camera", "Simulated Phone"
    assert at_night[trail] > at_noon[trail]
    assert at_noon[phone] > 5 * at_night[phone]


def test_an_even_run_has_one_pace() -> None:
    plan = build_plan(Terms(cameras=10, seconds=10, rate=1000, day=False))
    tenths = Counter(int(each.at) for each in plan.pictures)
    assert min(tenths.values()) > 0.8 * max(tenths.values())


def test_named_families() -> None:
    assert [each.name for each in families_by_name(["A", "B", "A"])] == ["A", "B"]
    assert families_by_name([]) == FAMILIES


@pytest.mark.parametrize(
    "wrong",
    [
        {"cameras": 0},
        {"cameras": 10_001},
        {"seconds": 0.0},
        {"seconds": float("nan")},
        {"seconds": 1e9},
        {"rate": 0.0},
        {"rate": float("inf")},
        {"rate": 1e5, "seconds": 1e4},
        {"tampering": 1.1},
        {"tampering": float("nan")},
        {"tampering": 0.5, "clones": 0.4, "replays": 0.2},
        {"aggregators": 0},
        {"families": ()},
    ],
    ids=str,
)
def test_what_cannot_be_played_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        replace(TERMS, **wrong)


def test_the_plan_of_one_camera_begins_genuine() -> None:
    terms = Terms(cameras=1, seconds=5, rate=2, aggregators=1)
    plan = plan_of_one(terms, [Case.REPLAYED_BUNDLE, Case.TAMPERED_TAG])
    assert [each.case for each in plan.pictures][:3] == [
        Case.GENUINE,
        Case.TAMPERED_TAG,
        Case.REPLAYED_BUNDLE,
    ]
    check_pictures(plan)
    assert Case.GENUINE in BY_ONE_CAMERA
