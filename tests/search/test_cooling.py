"""Cooling the busiest GPU: what it may never break, the coolest of all on tiny layers, and a case known by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import Bound
from moe_placer.limits import Deadline
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult, Stop
from moe_placer.search.cooling import Cooled, cool
from moe_placer.search.moves import repair
from moe_placer.solve.gpu_assignment import pack

TWO_SLOTS = {"slots_per_gpu": 2}
CASES: dict[str, dict[str, Any]] = {
    "two slots": VARIANTS["two slots"],
    "even": {"placement": {"replica_routing": "even", **TWO_SLOTS}},
    "full": {"cluster": {"nodes": 2}, "placement": TWO_SLOTS},
    "apart": {"placement": {"replica_routing": "even", "replicas_apart": "node", **TWO_SLOTS}},
    "failed": {"placement": {"failed_gpus": [3], **TWO_SLOTS}},
    "pinned": {"placement": {"pinned": [{"layer": 1, "expert": 0, "replica": 1, "gpu": 5}], **TWO_SLOTS}},
}


def placed(case: str, seed: int) -> tuple[Problem, np.ndarray, np.ndarray]:
    """A problem, a random valid placement of its first layer on GPUs, and the slots that are free there."""
    instance = tiny_instance(**CASES[case])
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    layer, rng = problem.layer(0), np.random.default_rng(seed)
    node = repair(layer, rng.permutation(np.repeat(np.arange(layer.nodes), layer.slots))[: layer.items], rng)
    assert node is not None
    result = LayerResult(node, layer.z(node), Bound(0.0, "solver"), Stop.WORK)
    gpu = np.array([gpus[0] for gpus in pack(problem, [result])[0]])
    slots = problem.capacity.slots[0]
    return problem, gpu, slots - np.bincount(gpu, minlength=len(slots))


def busiest(problem: Problem, gpu: np.ndarray) -> float:
    return float(np.bincount(gpu, problem.layer(0).load).max())


def allowed(problem: Problem, gpu: np.ndarray) -> bool:
    """Whether GPUs and nodes hold what they may, replicas keep apart, and pins are where they are."""
    layer = problem.layer(0)
    pins = {(e, r): g for (row, e, r), g in problem.pinned.items() if row == 0}
    of = dict(zip(zip(layer.expert.tolist(), layer.replica.tolist(), strict=True), gpu.tolist(), strict=True))
    held = np.bincount(gpu, minlength=len(problem.capacity.memory_slots))
    pairs = np.unique(np.stack([gpu, layer.expert]), axis=1)
    return (
        layer.valid(gpu // problem.gpus_per_node)
        and bool((held <= problem.capacity.slots[0]).all())
        and pairs.shape[1] == layer.items
        and all(of[replica] == gpu_ for replica, gpu_ in pins.items())
    )


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 10_000), slack=st.sampled_from([0.0, 0.05, 10.0, None]))
@settings(max_examples=12, deadline=None)
def test_it_breaks_nothing_and_heats_nothing(case: str, seed: int, slack: float | None) -> None:
    problem, gpu, free = placed(case, seed)
    layer, before = problem.layer(0), gpu.copy()
    z = layer.z(gpu // problem.gpus_per_node)
    limit = None if slack is None else z * (1 + slack)
    cooled = cool(layer, gpu, free, limit, Deadline())
    assert allowed(problem, cooled.gpu)
    assert cooled.busiest == pytest.approx(busiest(problem, cooled.gpu))
    assert cooled.busiest <= busiest(problem, gpu) * (1 + 1e-12)
    assert cooled.z == layer.z(cooled.gpu // problem.gpus_per_node) <= (z if limit is None else limit) * (1 + 1e-12)
    if limit is None:
        np.testing.assert_array_equal(cooled.gpu // problem.gpus_per_node, gpu // problem.gpus_per_node)
    np.testing.assert_array_equal(gpu, before)


@pytest.mark.parametrize("case", ["full", "pinned"])
def test_no_trade_is_missed(case: str) -> None:
    """In the end no swap, and no move to a free slot, cools the busiest GPU within the limit."""
    for seed in range(6):
        problem, gpu, free = placed(case, seed)
        layer, size = problem.layer(0), problem.gpus_per_node
        limit = layer.z(gpu // size) * 1.02
        cooled = cool(layer, gpu, free, limit, Deadline())
        hot = int(np.bincount(cooled.gpu, layer.load, len(free)).argmax())
        for i, j in product(np.flatnonzero(cooled.gpu == hot), range(layer.items + len(free))):
            after = cooled.gpu.copy()
            after[i] = after[j] if j < layer.items else j - layer.items
            if j < layer.items:
                after[j] = hot
            within = allowed(problem, after) and layer.z(after // size) <= limit
            load = np.bincount(after, layer.load, len(free))
            cooler = max(load[hot], load[after[i]]) < cooled.busiest * (1 - 1e-6)
            # What only swaps two replicas of one expert is no trade.
            if within and cooler and not (j < layer.items and layer.expert[i] == layer.expert[j]):
                pytest.fail(f"seed {seed}: item {i} to GPU {after[i]} was missed")


def test_it_is_as_cool_as_the_coolest_of_all() -> None:
    """Against every placement of 4 experts on 2 nodes of one GPU with two slots, links free."""
    instance = tiny_instance(
        cluster={"nodes": 2, "gpus_per_node": 1}, parallelism={"dp": 1}, placement={"slots_per_gpu": 2}
    )
    for seed in range(10):
        problem = compile_problem(instance, tiny_traffic(instance, seed))
        layer = problem.layer(0)
        best = min(
            busiest(problem, np.array(gpu)) for gpu in product(range(2), repeat=4) if sum(gpu) == 2
        )  # two of four experts on each
        start = np.array([0, 0, 1, 1])
        assert cool(layer, start, np.zeros(2, int), np.inf, Deadline()).busiest == pytest.approx(best)


def test_by_hand() -> None:
    """Loads 4, 3, 2, 1 as (4, 3) and (2, 1): giving 4 for 2, or 3 for 1, leaves 5 and 5; giving 3 for 2, 6 and 4."""
    instance = tiny_instance(
        cluster={"nodes": 1, "gpus_per_node": 2}, parallelism={"dp": 1}, placement={"slots_per_gpu": 2}
    )
    problem = compile_problem(instance, tiny_traffic(instance, 0))
    layer = problem.layer(0)
    loads = np.array([4.0, 3.0, 2.0, 1.0])
    cooled: Cooled = cool(replace(layer, load=loads), np.array([0, 0, 1, 1]), np.zeros(2, int), 0.0, Deadline())
    assert cooled.busiest == 5.0
    assert sorted(np.bincount(cooled.gpu, loads).tolist()) == [5.0, 5.0]
