"""What the verifier says of a placement that was made from another one within a budget of moves."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.current import read_current
from moe_placer.replan.replan import replan
from moe_placer.solve.solve import solve
from moe_placer.traffic import Traffic
from moe_placer.verifier import verify

QUICK = Limits(time_s=60.0, work=0.02)
SMALL: dict[str, Any] = {"nodes": 3, "fabric": {"nodes_per_leaf": 3}}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"cluster": SMALL, "model": {"experts": 6}},
    "spare": {"cluster": SMALL, "model": {"experts": 5}},
    "NICs": {
        "cluster": {**SMALL, "nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}},
        "model": {"experts": 6},
    },
    "even": {
        "cluster": SMALL,
        "model": {"experts": 5},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots": 1}},
    },
}
Case = tuple[Instance, Traffic, Placement, Placement]


def planned(instance: Instance, seed: int) -> Placement:
    limits = Limits(time_s=5.0, bounds=False)
    return solve(instance, tiny_traffic(instance, seed), solver="greedy", limits=limits).placement


@pytest.fixture(scope="module")
def case() -> Case:
    """Return an instance, new traffic, the placement that ran before, and one within three moves."""
    instance = tiny_instance()
    current, traffic = planned(instance, 4), tiny_traffic(instance, 5)
    found = replan(instance, current, traffic, budget=Budget(moves=3), limits=QUICK)
    return instance, traffic, current, found.placement


def rules(case: Case, current: Placement, **changes: Any) -> list[str]:
    """Return the rules that are broken where the record of the replan is changed."""
    instance, traffic, _, placement = case
    assert placement.replan is not None
    record = placement.replan.model_copy(update=changes)
    found = verify(instance, placement.model_copy(update={"replan": record}), traffic, current)
    return [violation.rule for violation in found.violations]


def test_an_honest_record_is_good_and_its_bound_derived_anew(case: Case) -> None:
    instance, traffic, current, placement = case
    found = verify(instance, placement, traffic, current)
    assert found.ok
    assert placement.replan is not None
    assert placement.replan.bound == pytest.approx(found.budget_bound, rel=1e-6)
    assert 0 < found.budget_bound <= found.total_z
    alone = verify(instance, placement, traffic)
    assert alone.ok
    assert "replan" in alone.facts_not_checked
    assert alone.budget_bound == 0


def test_every_lie_is_reported(case: Case) -> None:
    _, _, current, placement = case
    record = placement.replan
    assert record is not None
    assert record.moves == 2
    assert record.bound is not None
    assert record.price is not None
    assert record.weights is not None
    assert rules(case, current.model_copy(update={"gpu": current.gpu[::-1]})) == ["current"]
    assert rules(case, current.model_copy(update={"gpu": current.gpu[:1]})) == ["current", "current"]
    far = tuple(tuple(tuple(int(gpu) + 100 for gpu in gpus) for gpus in row) for row in current.gpu)
    assert rules(case, current.model_copy(update={"gpu": far})) == ["current", "current"]
    assert rules(case, current, moves=record.moves + 1) == ["moves"]
    assert rules(case, current, max_moves=1, bound=None) == ["moves"]
    assert rules(case, current, inside_nodes=True) == ["moves", "moves"]
    assert rules(case, current, bound=record.bound * (1 + 1e-6)) == ["bound"]
    assert rules(case, current, max_moves=4) == ["bound"]  # the same proof proves less for more moves
    assert rules(case, current, price=None) == ["proof"]
    assert rules(case, current, price=float("inf")) == ["proof"]
    assert rules(case, current, price=record.price / 4) == ["bound"]
    assert rules(case, current, weights=record.weights[:1]) == ["weights"]
    assert rules(case, current, weights=({}, *record.weights[1:])) == ["weights"]


def least_within(instance: Instance, current: Placement, traffic: Traffic, most: int) -> float:
    """Return the least sum of z of any assignment of items to places with at most so many moves: brute force."""
    problem = compile_problem(instance, traffic)
    now = read_current(problem, current)
    best = {0: 0.0}
    for index in range(len(problem)):
        layer, held = now.problem.layer(index), now.held(index, problem.gpus_per_node)
        slots = np.repeat(np.arange(layer.nodes), layer.slots).tolist()
        ways: dict[int, float] = {}
        for node in set(itertools.permutations(slots, layer.items)):
            on = np.zeros_like(held)
            np.add.at(on, (layer.expert, np.array(node)), 1)
            moves = int(np.maximum(0, on - held).sum())
            if moves <= most and layer.valid(np.array(node)):
                ways[moves] = min(ways.get(moves, np.inf), layer.z(np.array(node)))
        pairs = [(b + m, z + w) for b, z in best.items() for m, w in ways.items() if b + m <= most]
        best = {moves: min(z for m, z in pairs if m == moves) for moves, _ in pairs}
    return min(best.values())


@settings(max_examples=10)
@example(seed=749, most=0, variant="NICs")  # the weights of all busy links proved 0.14% less than is there
@given(seed=st.integers(0, 1000), most=st.integers(0, 5), variant=st.sampled_from(sorted(VARIANTS)))
def test_bound_optimum_and_what_is_found_are_in_this_order(seed: int, most: int, variant: str) -> None:
    instance = tiny_instance(parallelism={"dp": 1}, **VARIANTS[variant])
    current, traffic = planned(instance, seed), tiny_traffic(instance, seed + 1)
    found = replan(instance, current, traffic, budget=Budget(moves=most), limits=QUICK, minimise="links")
    assert found.verification is not None
    assert found.bound is not None
    bound = found.verification.budget_bound
    assert bound == pytest.approx(found.bound.value, rel=1e-6, abs=1e-6 * found.before.total_z)
    assert bound <= found.after.total_z * (1 + 1e-9)
    if variant != "even":  # there, other numbers of replicas are placements too
        best = least_within(instance, current, traffic, most)
        assert bound <= best * (1 + 1e-9)
        assert best <= found.after.total_z * (1 + 1e-9)
    if most == 0 and variant != "even":  # a move is too dear for any price that is high enough
        assert bound >= 0.999 * found.before.total_z
