"""A budget of redundant slots that layers share: read, counted, verified, and put where it is worth most."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
from builders import every_valid, honest, in_order, level_traffic, merged, rules_of, tiny_instance, tiny_traffic
from pydantic import ValidationError

from moe_placer.bounds.bounds import relaxed_bound
from moe_placer.cli.describe import describe
from moe_placer.dag.drawing_files import write_dags
from moe_placer.errors import InfeasibleError, InputError
from moe_placer.experiments.compare.current_plan import contiguous_plan, count_moves
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement
from moe_placer.problem.capacity import why_infeasible
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.replicas import count_replicas, layer_time, with_replicas
from moe_placer.result import LayerResult, Stop
from moe_placer.search.replica_budget import share_out
from moe_placer.solve.solve import solve
from moe_placer.verifier import verify

EXPERTS = 3


def shared_instance(budget: int = 4, **changes: Any) -> Instance:
    """Let two MoE layers of 3 experts on 3 nodes of 2 GPUs share a budget of redundant slots."""
    base: dict[str, Any] = {
        "model": {"layers": 3, "experts": EXPERTS},
        "cluster": {"nodes": 3, "gpu": {"peak_tflops": 1e6}},
        "parallelism": {"dp": 1},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": budget}},
    }
    return tiny_instance(**merged(base, changes))


def least_by_share(problem: Problem, index: int, most: int) -> list[float]:
    """Try every choice of replicas and nodes: the least z of a layer with 0, 1, ... redundant replicas."""
    least = []
    for extra in range(most + 1):
        best = np.inf
        for more in combinations_with_replacement(range(EXPERTS), extra):
            layer = problem.layer(index, 1 + np.bincount(more, minlength=EXPERTS))
            best = min([best, *(layer.z(node) for node in every_valid(layer))])
        least.append(best)
    return least


@pytest.mark.parametrize("budget", [2, 4])
def test_the_best_allocation_is_found_and_the_bound_holds(budget: int) -> None:
    gains = []
    for seed in range(4):
        instance = shared_instance(budget)
        traffic = tiny_traffic(instance, seed)
        problem = compile_problem(instance, traffic)
        one, other = (least_by_share(problem, index, min(3, budget)) for index in range(2))
        shares = [(a, b) for a in range(len(one)) for b in range(len(other)) if a + b <= budget]
        least, equal = min(one[a] + other[b] for a, b in shares), one[budget // 2] + other[budget // 2]
        solution = solve(instance, traffic, limits=Limits(time_s=240, gap=0.0, work=10.0))
        assert solution.verification.total_z == pytest.approx(least, rel=1e-6)
        assert solution.verification.total_bound <= least * (1 + 1e-9)
        replicas = solution.placement.replicas
        assert replicas["bound_covers_choice_of_copies"] is True
        assert replicas["redundant_in_all"] <= replicas["redundant_slots_in_all"] == budget
        assert all(record.solver_bound is None for record in solution.placement.layers)
        gains.append(equal / least)
    assert max(gains) > 1.01 or budget == 2  # else equal shares would have done


@pytest.mark.parametrize("seed", range(3))
def test_moving_replicas_saves_time_and_never_raises_the_worst_links(seed: int) -> None:
    instance = shared_instance(
        9, model={"layers": 4, "experts": 6}, cluster={"gpus_per_node": 4, "gpu": {"peak_tflops": 1.0}}
    )
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    layers, results = [problem.layer(index) for index in range(len(problem))], []
    for layer in layers:
        node = np.repeat(np.arange(layer.nodes), layer.slots)[: layer.items]
        results.append(LayerResult(node, layer.z(node), relaxed_bound(layer), Stop.TIME))
    shared = share_out(layers, results, 9, 0.0, 0.0, 1.0, Deadline())
    after = [
        layer if new.replicas is None else with_replicas(layer, new.replicas)
        for layer, new in zip(layers, shared, strict=True)
    ]
    assert all(layer.valid(new.node) for layer, new in zip(after, shared, strict=True))
    assert sum(int((count_replicas(layer) - 1).sum()) for layer in after) <= 9
    assert sum(new.z for new in shared) <= sum(old.z for old in results) * (1 + 1e-9)
    before = sum(layer_time(layer, old.z) for layer, old in zip(layers, results, strict=True))
    assert sum(layer_time(layer, new.z) for layer, new in zip(after, shared, strict=True)) < before
    assert all(new.bound.any_replicas for new in shared)


def test_a_hot_layer_gets_the_replicas_that_an_even_one_does_not_need() -> None:
    instance = shared_instance(2, cluster={"gpus_per_node": 3, "gpu": {"peak_tflops": 1.0}})
    traffic = level_traffic(instance, [[100.0, 100.0, 100.0], [280.0, 10.0, 10.0]], 150.0)
    placement = solve(instance, traffic, limits=Limits(time_s=240, gap=0.0, work=5.0)).placement
    assert [[len(gpus) for gpus in row] for row in placement.gpu] == [[1, 1, 1], [3, 1, 1]]


@pytest.mark.parametrize("solver", ["contiguous", "eplb", "lpt", "trtllm", "greedy", "flow", "cpsat"])
def test_other_methods_give_layers_equal_shares(solver: str) -> None:
    instance = shared_instance(3, cluster={"gpus_per_node": 2})
    solution = solve(instance, tiny_traffic(instance, 1), solver=solver, limits=Limits(time_s=5))
    assert [sum(map(len, row)) for row in solution.placement.gpu] == [5, 4]
    assert solution.verification.ok


def test_one_replica_more_than_the_budget_is_reported() -> None:
    instance = shared_instance(4, cluster={"gpus_per_node": 3})
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    assert rules_of(instance, data, traffic) == []
    more = honest(instance, traffic, gpu=[[[*row[0], 8], *row[1:]] if i else row for i, row in enumerate(data["gpu"])])
    assert rules_of(instance, more, traffic) == ["replicas"]
    (violation,) = verify(instance, Placement.model_validate(more), traffic).violations
    assert str(violation) == (
        "[replicas] 5 redundant replicas over all layers, required are at most redundant_slots_in_all (4)"
    )


def test_layers_may_share_unevenly_and_leave_some_of_the_budget() -> None:
    instance = shared_instance(4, cluster={"gpus_per_node": 3})
    traffic = tiny_traffic(instance)
    gpu = in_order(instance)
    gpu[0] = [[0], [1], [2]]
    gpu[1] = [[0, 3, 6], [1], [2, 5]]
    assert rules_of(instance, honest(instance, traffic, gpu=gpu), traffic) == []
    without = honest(instance, traffic, gpu=[gpu[0], [[0], [], [2]]])
    assert rules_of(instance, without, traffic) == ["replicas"]


def test_budgets_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        shared_instance(-1)
    both = {"redundant_slots_in_all": 2, "redundant_slots": 1}
    with pytest.raises(ValidationError, match="Extra inputs"):
        tiny_instance(placement={"replicas": both, "replica_routing": "even"}, parallelism={"dp": 1})
    with pytest.raises(InputError, match="even"):
        tiny_instance(placement={"replicas": {"redundant_slots_in_all": 2}}, parallelism={"dp": 1})
    crowded = shared_instance(3, model={"experts": 7})
    reason = "asks for 7 expert replicas in every layer, but 6 working GPUs with 1 slot each hold only 6"
    assert reason in str(why_infeasible(crowded))
    with pytest.raises(InfeasibleError, match=reason):
        solve(crowded, tiny_traffic(crowded))


@pytest.mark.parametrize("solver", ["auto", "cpsat", "eplb", "trtllm"])
@pytest.mark.parametrize(("budget", "used"), [(6, 6), (7, 6), (1000, 6), (1, 1)])
def test_a_budget_need_not_be_used_up(solver: str, budget: int, used: int) -> None:
    instance = shared_instance(budget)  # 3 experts and 6 slots in each of 2 layers
    assert why_infeasible(instance) is None
    solution = solve(instance, tiny_traffic(instance), solver=solver, limits=Limits(time_s=240, work=0.2))
    assert solution.placement.replicas["redundant_in_all"] == used


def test_memory_counts_all_layers_together() -> None:
    # An expert is 2 * 64 * 32 values of 2 bytes; the GPUs hold 10 of these beside what is resident on them.
    size, resident = 2 * 64 * 32 * 2, (3 * 4 * 64 * 64 + 2 * 64 * 64 + 2 * 1000 * 64) * 2
    memory = {gpu: (resident + size * (1 + (gpu < 4)) + 10) / 1e9 for gpu in range(6)}
    assert why_infeasible(shared_instance(4, cluster={"gpu_memory_gb": memory})) is None
    for budget in (4, 5):  # six experts are one replica each, four further replicas use the memory up
        instance = shared_instance(budget, cluster={"gpu_memory_gb": memory})
        assert (compile_problem(instance, tiny_traffic(instance)).replicas - 1).sum() == 4
        assert solve(instance, tiny_traffic(instance), limits=Limits(time_s=240, work=0.2)).verification.ok
    small = {gpu: (resident + size * (gpu < 5) + 10) / 1e9 for gpu in range(6)}
    assert "6 expert replicas" in str(why_infeasible(shared_instance(4, cluster={"gpu_memory_gb": small})))


def test_inspect_tells_of_the_budget() -> None:
    told = describe(shared_instance(3), None)
    assert told.redundant_slots_in_all == 3
    assert (
        "Slots: 3 redundant slots over all layers, at most; with equal shares, a layer has 5 expert replicas for 6 "
        "slots; 1 slots stay free." in told.to_text()
    )
    assert told.memory_gb["experts"] == pytest.approx(2 * 2 * 64 * 32 * 2 / 1e9)  # 9 replicas on 6 GPUs: at most two


def test_layers_of_different_sizes_go_through_everything_downstream(tmp_path: Any) -> None:
    instance = shared_instance(2, cluster={"gpus_per_node": 3, "gpu": {"peak_tflops": 1.0}})
    traffic = level_traffic(instance, [[100.0, 100.0, 100.0], [280.0, 10.0, 10.0]], 150.0)
    solution = solve(instance, traffic, limits=Limits(time_s=240, gap=0.0, work=5.0))
    assert solution.placement.replicas["per_layer"] == [3, 5]
    moves = count_moves(solution.placement, contiguous_plan(instance, traffic))
    assert moves is not None
    assert moves >= 1
    assert write_dags(instance, solution.placement, traffic, tmp_path)
    again = solve(instance, traffic, limits=Limits(time_s=0.0), start=solution.placement)
    assert again.placement.gpu == solution.placement.gpu


def test_a_start_beyond_the_budget_is_refused() -> None:
    big, small = shared_instance(4), shared_instance(3)
    traffic = tiny_traffic(big)
    start = solve(big, traffic, solver="lpt").placement
    with pytest.raises(InputError, match="4 redundant replicas over all layers"):
        solve(small, traffic, start=start)


def test_workers_do_not_change_the_placement() -> None:
    instance = shared_instance(3, model={"experts": 6}, cluster={"gpus_per_node": 4})
    traffic = tiny_traffic(instance, 2)
    one, two = (
        solve(instance, traffic, limits=Limits(time_s=60, gap=0.0, work=0.5, workers=workers)).placement
        for workers in (1, 2)
    )
    assert one.gpu == two.gpu
