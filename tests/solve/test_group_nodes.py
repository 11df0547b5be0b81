"""Replicas come to the nodes of the DP group that uses them, where that raises no layer's z."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import Bound
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult, Stop
from moe_placer.schedule.simulate import simulate_placement
from moe_placer.solve.group_nodes import bring_to_groups, outside_groups
from moe_placer.solve.solve import solve

NICS = {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}}


def shuffled(problem: Problem, seed: int) -> list[LayerResult]:
    """Put every layer's items on slots at random, and claim nothing of it."""
    rng = np.random.default_rng(seed)
    results = []
    for index in range(len(problem)):
        layer = problem.layer(index)
        places = np.repeat(np.arange(layer.nodes), layer.slots)
        node = rng.permutation(places)[: layer.items]
        while not layer.valid(node):
            node = rng.permutation(places)[: layer.items]
        results.append(LayerResult(node, layer.z(node), Bound(0.0, "solver"), Stop.FINISHED))
    return results


@given(seed=st.integers(0, 10_000), dp=st.sampled_from([2, 4]), nics=st.booleans(), spare=st.booleans())
@settings(max_examples=25, deadline=None)
def test_no_z_rises_and_more_replicas_are_home(seed: int, dp: int, nics: bool, spare: bool) -> None:
    cluster = {"gpus_per_node": 4 if dp == 4 else 2, **(NICS if nics else {})}
    instance = tiny_instance(cluster=cluster, parallelism={"dp": dp}, placement={"slots_per_gpu": 1 + spare})
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    results = shuffled(problem, seed)
    moved = bring_to_groups(problem, results)
    for index, (before, after) in enumerate(zip(results, moved, strict=True)):
        layer = problem.layer(index)
        assert before.node is not None
        assert after.node is not None
        assert layer.valid(after.node)
        assert after.z == pytest.approx(layer.z(after.node))
        assert after.z <= before.z
        out, still = (outside_groups(problem, layer, one).sum() for one in (before.node, after.node))
        assert still <= out
        if still == out:
            np.testing.assert_array_equal(after.node, before.node)


def test_what_two_groups_hold_of_each_other_is_traded_by_hand() -> None:
    instance = tiny_instance(cluster={"fabric": {"kind": "full-mesh"}})
    problem = compile_problem(instance, tiny_traffic(instance))
    home = np.array([0, 0, 1, 1, 2, 2, 3, 3])  # replicas 0 of four experts, then replicas 1
    crossed = home[[4, 1, 2, 3, 0, 5, 6, 7]]
    layer = problem.layer(0)
    result = LayerResult(crossed, layer.z(crossed), Bound(0.0, "solver"), Stop.FINISHED)
    assert layer.z(home) <= result.z
    gpus = 2 * crossed + np.tile([0, 1], 4)
    other = replace(result, z=problem.layer(1).z(crossed), gpu=gpus)
    first, second = bring_to_groups(problem, [result, other])
    assert first.node is not None
    assert second.gpu is not None
    assert not outside_groups(problem, layer, first.node).any()
    np.testing.assert_array_equal(second.gpu // 2, second.node)
    assert sorted(second.gpu.tolist()) == list(range(8))


def test_without_groups_nothing_is_outside() -> None:
    instance = tiny_instance(placement={"replica_routing": "even"})
    problem = compile_problem(instance, tiny_traffic(instance))
    results = shuffled(problem, 0)
    assert bring_to_groups(problem, results) == results
    assert not outside_groups(problem, problem.layer(0), results[0].node).any()


def test_the_default_leaves_no_replica_outside_where_the_hottest_nic_decides() -> None:
    nics = {"per_node": 8, "gb_per_s": 50.0, "receive": "destination-gpu"}
    model, cluster = {"experts": 16, "top_k": 2}, {"gpus_per_node": 8, "nics": nics}
    instance = tiny_instance(model=model, cluster=cluster)
    traffic = tiny_traffic(instance, 7)  # the search leaves three of each group outside
    found = {name: solve(instance, traffic, solver=name, limits=Limits(work=1)) for name in ("auto", "contiguous")}
    gpu = np.array(found["auto"].placement.gpu)
    assert (gpu[:, :, 0] < 16).all()
    assert (gpu[:, :, 1] >= 16).all()
    steps = {name: simulate_placement(instance, one.placement, traffic).makespan for name, one in found.items()}
    assert steps["auto"] <= steps["contiguous"] * 1.002
