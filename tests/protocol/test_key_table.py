"""Sizes of an authority's key tables, and the assignment of three of them to a device."""

import random
import secrets
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark_sma.errors import ProtocolError
from birthmark_sma.protocol.key_table import (
    MAX_WIRE_INTEGER,
    PROTOTYPE_SIZES,
    STANDARD_SIZES,
    TABLES_PER_DEVICE,
    TableSizes,
    assign_tables,
)

sizes_of_authorities = st.builds(
    TableSizes, tables=st.integers(3, 5_000), keys_per_table=st.integers(1, 2_000)
)


@given(sizes_of_authorities, st.integers(0, 2**64))
def test_three_distinct_tables_in_range_ascending(sizes: TableSizes, seed: int) -> None:
    """A device holds 3 distinct tables of its authority, in ascending order."""
    assigned = assign_tables(sizes, random.Random(seed).sample)
    assert len(set(assigned)) == len(assigned) == TABLES_PER_DEVICE == 3
    assert list(assigned) == sorted(assigned)
    assert all(sizes.has_table(table_id) for table_id in assigned)


def test_the_least_authority_assigns_all_it_has() -> None:
    """Three tables are enough, and then every device holds the same ones."""
    sizes = TableSizes(tables=3, keys_per_table=1)
    assert assign_tables(sizes, secrets.SystemRandom().sample) == (0, 1, 2)


def test_all_chance_comes_from_outside() -> None:
    """Threat 10: the assignment is what the generator passed in draws, and nothing else."""
    asked: list[tuple[Sequence[int], int]] = []

    def draw(population: Sequence[int], k: int) -> list[int]:
        asked.append((population, k))
        return [2_499, 0, 1_234]

    assert assign_tables(STANDARD_SIZES, draw) == (0, 1_234, 2_499)
    assert asked == [(range(2_500), 3)]


def test_every_table_is_as_likely_as_any_other() -> None:
    """Over 10,000 devices of the prototype no table is favoured, the first and last included."""
    sample = random.Random(20_261_122).sample
    held = Counter(
        table_id for _ in range(10_000) for table_id in assign_tables(PROTOTYPE_SIZES, sample)
    )
    assert set(held) == set(range(10))
    assert all(2_800 < count < 3_200 for count in held.values())


def test_the_sizes_of_the_contract() -> None:
    """2,500 tables of 1,000 keys, and 10 of 100 for the prototype."""
    assert TableSizes(tables=2_500, keys_per_table=1_000) == STANDARD_SIZES
    assert TableSizes(tables=10, keys_per_table=100) == PROTOTYPE_SIZES


@pytest.mark.parametrize(
    ("number", "exists"), [(-1, False), (0, True), (2_499, True), (2_500, False), (2**63, False)]
)
def test_which_tables_exist(number: int, exists: bool) -> None:
    """Table ids run from 0 to 2,499."""
    assert STANDARD_SIZES.has_table(number) is exists


@pytest.mark.parametrize(
    ("number", "exists"),
    [(-1, False), (0, True), (999, True), (1_000, False), (123_456, False), (2**32, False)],
)
def test_which_key_indices_exist(number: int, exists: bool) -> None:
    """Threat 14: key index 123456 exists in no table of 1,000 keys."""
    assert STANDARD_SIZES.has_key_index(number) is exists


@pytest.mark.parametrize("tables", [-1, 0, 1, 2, MAX_WIRE_INTEGER + 1])
def test_too_few_or_too_many_tables(tables: int) -> None:
    """An authority that could not give a device 3 tables cannot be described."""
    with pytest.raises(ProtocolError, match="key tables"):
        TableSizes(tables=tables, keys_per_table=1_000)


@pytest.mark.parametrize("keys_per_table", [-1, 0, MAX_WIRE_INTEGER + 1])
def test_too_few_or_too_many_keys(keys_per_table: int) -> None:
    """A table without keys cannot be described."""
    with pytest.raises(ProtocolError, match="at least 1 key"):
        TableSizes(tables=10, keys_per_table=keys_per_table)
