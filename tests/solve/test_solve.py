"""The whole way: memory that binds, what cannot be, and what a solution says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_tokens, tiny_traffic

from moe_placer.bounds.bounds import Bound, companions_bound
from moe_placer.errors import InfeasibleError, InputError, UsageError
from moe_placer.instance import load_instance
from moe_placer.instance.sizes import GB, expert_bytes, memory_parts
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import compile_problem
from moe_placer.result import LayerResult, Status, Stop, gap
from moe_placer.solve.outcome import never_worse
from moe_placer.solve.solve import solve

INSTANCES = Path(__file__).parents[2] / "instances"


def room_for(replicas: int, layers: int = 6) -> float:
    """GB that a GPU of the tiny instance, of so many layers, needs for what is resident and so many experts."""
    instance = tiny_instance(model={"layers": layers})
    return (memory_parts(instance).total + (replicas + 0.5) * expert_bytes(instance)) / GB


@pytest.mark.parametrize("solver", ["auto", "greedy", "cpsat", "eplb-global"])
def test_memory_that_binds_over_layers_is_respected(solver: str) -> None:
    # 12 GPUs, 5 MoE layers of 8 replicas: 40 replicas; four GPUs have room for 2 layers only, one for none.
    instance = tiny_instance(
        model={"layers": 6},
        cluster={"gpus_per_node": 3, "gpu_memory_gb": {**dict.fromkeys((0, 4, 7, 9), room_for(2)), 11: room_for(0)}},
    )
    solution = solve(instance, tiny_traffic(instance), solver=solver, limits=Limits(time_s=10))
    assert solution.verification.ok
    held = np.bincount([gpu for layer in solution.placement.gpu for expert in layer for gpu in expert], minlength=12)
    assert (held[[0, 4, 7, 9]] <= 2).all()
    assert held[11] == 0


TOO_CLOSE = {"failed_gpus": [0, 1], "replicas_apart": "node", "slots_per_gpu": 2}


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"model": {"experts": 9}}, "Use more GPUs"),
        ({"cluster": {"gpu": {"memory_gb": room_for(1, layers=3)}}}, "Use more memory"),
        ({"parallelism": {"dp": 4}, "model": {"experts": 2}, "placement": TOO_CLOSE}, "different nodes"),
    ],
)
def test_what_cannot_be_is_proved_so(changes: dict[str, Any], advice: str) -> None:
    instance = tiny_instance(**changes)
    with pytest.raises(InfeasibleError, match=advice):
        solve(instance, tiny_traffic(instance))


@pytest.mark.parametrize("solver", ["auto", "greedy", "random", "eplb", "eplb-global"])
def test_pins_stay(solver: str) -> None:
    pins = [{"layer": 1, "expert": 0, "replica": 1, "gpu": 5}, {"layer": 2, "expert": 3, "gpu": 0}]
    instance = tiny_instance(placement={"pinned": pins})
    solution = solve(instance, tiny_traffic(instance), solver=solver, limits=Limits(time_s=10))
    assert solution.placement.gpu[0][0][1] == 5
    assert solution.placement.gpu[1][3][0] == 0


def test_contiguous_is_the_seed_plan() -> None:
    instance = tiny_instance()
    solution = solve(instance, tiny_traffic(instance), solver="contiguous")
    assert solution.placement.gpu[0] == ((0, 4), (1, 5), (2, 6), (3, 7))


def test_a_heuristic_without_bounds_places_the_same_and_its_gap_is_weaker_or_not_known() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    bounded, quick = (solve(instance, traffic, solver="greedy", limits=Limits(bounds=b)) for b in (True, False))
    assert quick.placement.gpu == bounded.placement.gpu
    assert all(record.weights is None for record in quick.placement.layers)
    assert any(record.weights is not None for record in bounded.placement.layers)
    assert (quick.gaps >= bounded.gaps).all()
    assert quick.gaps.sum() > bounded.gaps.sum()
    assert quick.verification.ok


def test_without_time_layers_get_bounds_that_cost_nothing() -> None:
    instance = load_instance(INSTANCES / "h100-128.yaml")
    solution = solve(instance, limits=Limits(time_s=0))
    assert {str(stop) for stop in solution.stop} == {"time"}
    assert solution.gaps.max() < 0.25  # the start's own distance from optimal, not the bound's


def test_a_start_is_kept_if_it_is_the_best() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    best = solve(instance, traffic, solver="cpsat", limits=Limits(time_s=240, gap=0.0, work=10.0))
    again = solve(instance, traffic, solver="auto", limits=Limits(time_s=0.0), start=best.placement)
    assert again.verification.total_z <= best.verification.total_z * (1 + 1e-9)


def test_a_start_of_another_shape_is_refused() -> None:
    instance = tiny_instance()
    other = tiny_instance(model={"layers": 4})
    start = solve(other, tiny_traffic(other), solver="contiguous").placement
    with pytest.raises(InputError, match="start"):
        solve(instance, tiny_traffic(instance), start=start)


def test_unknown_solvers_and_limits_are_usage_errors() -> None:
    instance = tiny_instance()
    with pytest.raises(UsageError, match="there is no solver 'nope'; there are: auto"):
        solve(instance, tiny_traffic(instance), solver="nope")
    for wrong in (
        {"time_s": -1.0},
        {"time_s": np.nan},
        {"gap": -0.1},
        {"workers": 0},
        {"workers": 2000},
        {"work": -1.0},
    ):
        with pytest.raises(UsageError):
            Limits(**wrong)


def test_gap_is_relative_to_the_bound() -> None:
    assert gap(101.0, 100.0) == pytest.approx(0.01)
    assert gap(0.0, 0.0) == 0.0
    assert gap(1.0, 0.0) == np.inf


def test_the_status_follows_from_z_and_the_bounds() -> None:
    node, word = np.zeros(2, dtype=int), Bound(5.0, "solver")
    assert LayerResult(node, 10.0, word, Stop.TIME).status is Status.FEASIBLE
    assert LayerResult(node, 5.0, word, Stop.TIME).status is Status.OPTIMAL
    assert LayerResult(node, 10.0, word, Stop.TIME, solver_bound=10.0).status is Status.OPTIMAL
    assert LayerResult(None, np.inf, word, Stop.TIME).status is Status.UNKNOWN
    assert LayerResult(None, np.inf, word, Stop.PROVED).status is Status.INFEASIBLE


@pytest.mark.parametrize(
    "wrong",
    [
        {"node": None},
        {"solver_bound": 11.0},
        {"z": np.inf},
        {"stop": Stop.PROVED},
    ],
)
def test_a_result_cannot_contradict_itself(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "node": np.zeros(2, dtype=int),
        "z": 10.0,
        "bound": Bound(5.0, "solver"),
        "stop": Stop.TIME,
    }
    LayerResult(**good)
    with pytest.raises(ValueError, match=r"contradicts|above|proved"):
        LayerResult(**{**good, **wrong})


def test_a_baseline_with_other_replicas_keeps_a_bound_for_any() -> None:
    """The search has the second replica at expert 2; a baseline that has it at expert 0 is better."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": 3, "top_k": 1},
        cluster={"nodes": 3, "gpus_per_node": 1, "fabric": {"nodes_per_leaf": 1, "spines": 3, "oversubscription": 3.7}},
        parallelism={"dp": 1},
        placement={
            "slots_per_gpu": 2, "replicas": {"redundant_slots": 1}, "replica_routing": "even", "dispatch": "per-gpu",
        },
        traffic={"kind": "trace", "tokens_per_gpu": 1.0},
    )  # fmt: skip
    traffic = tiny_tokens(instance, 1014, (7, 9))
    problem = compile_problem(instance, traffic)
    plans = []
    for replicas, node in (([1, 1, 2], [0, 1, 0, 2]), ([2, 1, 1], [0, 2, 0, 1])):
        layer = problem.layer(0, np.array(replicas))
        bound = companions_bound(layer, np.array(node), Deadline())
        z = layer.z(np.array(node))
        plans.append([LayerResult(np.array(node), z, bound, Stop.WORK, replicas=np.array(replicas))])
    worse, better = sorted(plans, key=lambda plan: -plan[0].z)
    (taken,) = never_worse(problem, worse, {"baseline": better})
    assert taken.z == better[0].z < worse[0].z
    assert taken.bound is worse[0].bound
    assert 0 < taken.bound.value <= taken.z
    (kept,) = never_worse(problem, better, {"baseline": worse})
    assert (kept.z, kept.bound) == (better[0].z, better[0].bound)
