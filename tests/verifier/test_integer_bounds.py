"""Bounds in whole numbers: exact where the assignment routine is right, never too high where it is not."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.verifier import integer_bounds
from moe_placer.verifier.bounds_anew import memory_bound
from moe_placer.verifier.capacity import _most_replicas
from moe_placer.verifier.integer_bounds import BITS, find_unit, least_cost, on_grid, steps_up_to, value_of


def cheapest(price: np.ndarray, slots: np.ndarray) -> int | None:
    """Try every assignment."""
    costs = [
        sum(int(price[i, n]) for i, n in enumerate(nodes))
        for nodes in product(range(len(slots)), repeat=len(price))
        if (np.bincount(nodes, minlength=len(slots)) <= slots).all()
    ]
    return min(costs, default=None)


@settings(max_examples=200, deadline=None)
@given(
    prices=st.lists(
        st.lists(st.sampled_from([0, 1, 2, 7, 2**40, 2**58 - 1]), min_size=3, max_size=3), min_size=1, max_size=5
    ),
    slots=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_the_least_cost_is_that_of_the_best_assignment(prices: list[tuple[int, ...]], slots: list[int]) -> None:
    price, memory = np.array(prices, dtype=np.int64), np.array(slots, dtype=np.int64)
    found, best = least_cost(price, memory), cheapest(price, memory)
    if best is None or found is None:
        assert found == best
    else:  # the routine that looks for slot prices has 53 bits; what it misses is taken off, never added
        assert best * (1 - 2**-50) <= found <= best


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bits=st.integers(1, BITS))
def test_any_assignment_that_the_routine_returns_gives_a_bound(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    price = rng.integers(0, 2**bits, (5, 3))
    slots = rng.integers(1, 4, 3)
    exact = cheapest(price, slots)
    wrong = np.repeat(np.arange(3), slots)[rng.permutation(slots.sum())[:5]] if slots.sum() >= 5 else np.zeros(5, int)
    routines = "_cheapest", "cheapest_by_moves"
    for routine in routines:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(integer_bounds, "cheapest_by_moves", lambda *_: None)
            patched.setattr(integer_bounds, "_merged", lambda *given: given)  # so that nodes keep their numbers
            patched.setattr(integer_bounds, routine, lambda *_: wrong)
            derived = least_cost(price, slots)
        assert (derived is None) == (exact is None)
        if derived is not None and exact is not None:
            assert derived <= exact


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), alike=st.booleans(), spare=st.integers(0, 9))
def test_moves_find_what_the_other_routine_finds(seed: int, alike: bool, spare: int) -> None:
    rng = np.random.default_rng(seed)
    price = rng.integers(0, 2**BITS, (40, 6))[:, np.arange(6) // (2 if alike else 1)]
    price -= price.min(axis=1, keepdims=True) // 2  # of a size, as tokens' costs are
    slots = rng.multinomial(40 + spare, np.ones(6) / 6)
    quick = least_cost(price, slots)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(integer_bounds, "cheapest_by_moves", lambda *_: None)
        slow = least_cost(price, slots)
    assert quick is not None
    assert slow is not None
    assert abs(quick - slow) <= max(quick, slow) >> 49


def test_alike_nodes_are_one_with_the_slots_of_all() -> None:
    price = np.array([[1, 5, 1, 5], [2, 7, 2, 7], [9, 3, 9, 3]])
    columns, slots = integer_bounds._merged(price, np.array([1, 1, 1, 3]))
    assert columns.tolist() == [[1, 5], [2, 7], [9, 3]]
    assert slots.tolist() == [2, 3]  # of more than there are items, none is needed


@settings(max_examples=200, deadline=None)
@given(values=st.lists(st.floats(0, 1e300), min_size=1, max_size=5), factor=st.floats(1e-150, 1e150))
def test_the_grid_rounds_down_by_less_than_a_step(values: list[float], factor: float) -> None:
    scaled = np.array(values) * (factor / max(*values, 1.0))
    unit = find_unit(float(scaled.max()))
    if unit is None:
        assert scaled.max() < 2.0**-599
        return
    step = Fraction(2) ** unit
    for value, steps in zip(scaled.tolist(), on_grid(scaled, unit).tolist(), strict=True):
        assert steps * step <= Fraction(value) < (steps + 1) * step
        assert (steps_up_to(value, unit) - 1) * step < Fraction(value) <= steps_up_to(value, unit) * step
        assert steps < 2**BITS


@pytest.mark.parametrize("largest", [0.0, 1e-300, 1e300, math.inf, math.nan, -1.0])
def test_what_is_out_of_range_has_no_grid(largest: float) -> None:
    assert find_unit(largest) is None


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(-(2**70), 2**70), unit=st.integers(-600, 500))
def test_values_are_rounded_down(steps: int, unit: int) -> None:
    value = value_of(steps, unit)
    assert 0 <= Fraction(value) <= max(Fraction(0), steps * Fraction(2) ** unit)
    assert value == 0 or Fraction(value) * (1 + Fraction(1, 2**52)) >= steps * Fraction(2) ** unit


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.floats(-25, 25), layers=st.integers(1, 12))
def test_equal_prices_of_memory_that_is_all_needed_prove_nothing(seed: int, exponent: float, layers: int) -> None:
    # Where all slots are taken in every layer, an equal price on all nodes is paid as often as it is given back.
    rng = np.random.default_rng(seed)
    slots = np.full(4, 3)
    prices = [1000.0 * rng.gamma(0.5, 1.0, (12, 4)) for _ in range(layers)]
    memory, none = slots * layers, np.zeros(4)
    without = memory_bound(prices, slots, none, memory)
    equal = memory_bound(prices, slots, np.full(4, 1000.0 * 10.0**exponent * float(rng.random())), memory)
    assert equal <= without * (1 + 1e-15)
    if exponent < 3:
        assert equal == pytest.approx(without, rel=1e-9)
    # Unequal ones are paid on every node as often as they are given back, too.
    unequal = memory_bound(prices, slots, 1000.0 * 10.0**exponent * rng.random(4), memory)
    assert unequal <= without * (1 + 1e-15)


@settings(max_examples=100, deadline=None)
@given(memory=st.lists(st.integers(0, 4), min_size=1, max_size=4), shards=st.integers(1, 3))
def test_the_most_replicas_are_those_that_can_be_placed(memory: list[int], shards: int) -> None:
    def can(many: int) -> bool:
        """Place replicas on the GPUs with the most slots left, which is best: none needs a GPU twice."""
        left = sorted(memory, reverse=True)
        for _ in range(many):
            if len(left) < shards or left[shards - 1] < 1:
                return False
            left[:shards] = [one - 1 for one in left[:shards]]
            left.sort(reverse=True)
        return True

    most: Any = _most_replicas(memory, shards)
    assert can(most)
    assert not can(most + 1)
