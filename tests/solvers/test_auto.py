"""The parts of the default method that a quick solve of a small instance does not come to."""

from __future__ import annotations

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic

from moe_placer.bounds.bounds import best_bound
from moe_placer.limits import Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.layerwise import LayerTask
from moe_placer.solve.solve import solve
from moe_placer.solvers import auto
from moe_placer.solvers.cpsat import CpSat
from moe_placer.verifier import verify


def layer_over(nodes: int) -> LayerProblem:
    """Compile one layer of as many experts as there are GPUs, two a node."""
    model = {"layers": 1, "dense_layers": [], "experts": 2 * nodes}
    instance = tiny_instance(model=model, cluster={"nodes": nodes}, parallelism={"dp": 1})
    return compile_problem(instance, tiny_traffic(instance)).layer(0)


def task_from(layer: LayerProblem, node: np.ndarray, work: float = 3.0) -> LayerTask:
    start = LayerResult(node, layer.z(node), best_bound(layer), Stop.WORK)
    return LayerTask(layer, 0.0, work, np.random.default_rng(0), start)


@pytest.mark.parametrize("seed", range(2))
def test_a_neighbourhood_of_all_nodes_finds_the_optimum(seed: int) -> None:
    layer = layer_over(4)
    node = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), 2))
    found = auto._by_neighbourhoods(task_from(layer, node))
    exact = CpSat().solve_layer(task_from(layer, node))
    assert found.node is not None
    assert layer.valid(found.node)
    assert found.z == pytest.approx(layer.z(found.node), rel=1e-12)
    assert exact.best_bound <= found.z * (1 + 1e-9)
    assert found.z == pytest.approx(exact.z, rel=1e-6)


def test_neighbourhoods_of_some_nodes_only_improve_and_repeat_themselves() -> None:
    layer = layer_over(12)
    node = np.random.default_rng(1).permutation(np.repeat(np.arange(12), 2))
    first, second = (auto._by_neighbourhoods(task_from(layer, node, 1.5)) for _ in range(2))
    assert first.node is not None
    assert second.node is not None
    assert layer.valid(first.node)
    assert first.z == pytest.approx(layer.z(first.node), rel=1e-12)
    assert first.bound.value <= first.z < 0.95 * layer.z(node)
    assert first.work > 0
    assert first.node.tolist() == second.node.tolist()


def test_a_layer_too_large_for_cp_sat_at_once_is_settled_some_nodes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = []
    real = auto._by_neighbourhoods
    monkeypatch.setattr(auto, "_WHOLE", 0)
    monkeypatch.setattr(auto, "_by_neighbourhoods", lambda task: (called.append(task), real(task))[1])
    instance = tiny_instance(model={"layers": 1, "dense_layers": [], "experts": 8}, parallelism={"dp": 1})
    traffic = tiny_traffic(instance)
    solution = solve(instance, traffic, limits=Limits(gap=0.0, work=2.0))
    assert called
    assert verify(instance, solution.placement, traffic).ok
    whole = solve(instance, traffic, solver="cpsat", limits=Limits(gap=0.0, work=2.0))
    assert solution.verification.total_z <= whole.verification.total_z * (1 + 1e-9)
