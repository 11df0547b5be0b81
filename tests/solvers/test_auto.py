"""The parts of the default method that a quick solve of a small instance does not come to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic

from moe_placer.bounds.bounds import best_bound
from moe_placer.limits import Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.layerwise import LayerTask
from moe_placer.solve.rounded_relaxation import from_relaxation
from moe_placer.solve.solve import solve
from moe_placer.solvers import auto
from moe_placer.solvers.cpsat import CpSat
from moe_placer.verifier import verify

BOTH = ("auto", "cpsat")


def layer_over(nodes: int) -> LayerProblem:
    """Compile one layer of as many experts as there are GPUs, two a node."""
    model = {"layers": 1, "dense_layers": [], "experts": 2 * nodes}
    instance = tiny_instance(model=model, cluster={"nodes": nodes}, parallelism={"dp": 1})
    return compile_problem(instance, tiny_traffic(instance)).layer(0)


def settled(monkeypatch: pytest.MonkeyPatch, gap: float, beyond: float) -> bool:
    """Whether CP-SAT is called for a layer of 8 experts on 4 nodes whose gap is so far beyond the one asked for."""
    called = []
    monkeypatch.setattr(auto, "settle", lambda task: (called.append(task), task.start)[1])
    monkeypatch.setattr(auto, "_searched", lambda _task, result, _target, _work: (result, 0.0))
    layer = layer_over(4)
    node = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 2))
    z = layer.z(node)
    bound = replace(best_bound(layer), value=z / (1 + gap + beyond), weights=np.zeros(layer.links))
    start = LayerResult(node, z, bound, Stop.WORK)
    auto.Auto().solve_layer(LayerTask(layer, gap, 1e-6, np.random.default_rng(0), start))
    return bool(called)


def test_a_tiny_layer_is_settled_whatever_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settled(monkeypatch, 0.001, 0.5)


@pytest.mark.parametrize(("beyond", "called"), [(0.0014, True), (0.0016, False)])
def test_a_small_layer_is_settled_where_proof_reaches(
    beyond: float, called: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_TINY", 0)
    assert settled(monkeypatch, 0.001, beyond) == called


def test_a_larger_layer_is_not_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TINY", "_SMALL"):
        monkeypatch.setattr(auto, name, 0)
    assert not settled(monkeypatch, 0.001, 0.00015)


def test_cp_sat_begins_with_the_rounded_relaxation() -> None:
    """With effort for nothing else, its placement is that of rounding and trades, and its bound the relaxation's."""
    layer = layer_over(12)
    task = LayerTask(layer, 0.5, 0.0, np.random.default_rng(3))
    rounded, effort = from_relaxation(replace(task, rng=np.random.default_rng(3)))
    found = CpSat().solve_layer(task)
    assert rounded is not None
    assert found.node is not None
    assert rounded.node is not None
    assert found.node.tolist() == rounded.node.tolist()
    assert found.bound.value == rounded.bound.value > 0
    assert found.work == effort > 0
    assert found.stop in {Stop.GAP, Stop.PROVED}


def test_cp_sat_alone_ends_where_the_default_ends() -> None:
    instance = tiny_instance(model={"layers": 1, "dense_layers": [], "experts": 8}, parallelism={"dp": 1})
    traffic = tiny_traffic(instance)
    default, exact = (solve(instance, traffic, solver=name, limits=Limits(gap=0.0, work=2.0)) for name in BOTH)
    assert verify(instance, default.placement, traffic).ok
    assert default.verification.total_z == pytest.approx(exact.verification.total_z, rel=1e-9)


def test_where_tokens_go_once_a_search_without_time_is_not_behind_affinity_clustering() -> None:
    sizes = {
        "model": {"experts": 16, "top_k": 4},
        "cluster": {"gpus_per_node": 4},
        "parallelism": {"dp": 1},
        "traffic": {"kind": "synthetic", "tokens_per_gpu": 256, "seed": 0},
    }
    once = tiny_instance(**sizes, placement={"dispatch": "per-node"})
    solution = solve(once, limits=Limits(work=1e-9))
    plans = solution.baseline_placements()
    totals = {name: total for name, total in solution.baselines.items() if isinstance(total, float)}
    assert min(totals, key=totals.__getitem__) == "affinity"
    assert set(totals) == set(plans) == {"contiguous", "eplb", "greedy", "affinity"}
    assert solution.objective <= totals["affinity"]
    assert "affinity" not in solve(tiny_instance(**sizes), limits=Limits(work=1e-9)).baselines
