"""Quick plans: what they may never break, figures that are true, plans known by hand, and better ones than EPLB's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, tiny_instance, tiny_traffic
from command_line import REPO
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import UsageError
from moe_placer.instance import Instance, load_instance
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.replica_counts import replicas_by_load
from moe_placer.search.layers_at_once import even_ranks, even_replicas
from moe_placer.solve.coolest_gpus import busiest_gpus
from moe_placer.solve.gpu_assignment import fit_to_gpus
from moe_placer.solve.quick_plan import QuickPlanner, place_at_once
from moe_placer.solve.registry import find_solver
from moe_placer.solve.solve import solve
from moe_placer.traffic import load_traffic

CASES: dict[str, dict[str, Any]] = {
    **{name: changes for name, changes in VARIANTS.items() if name != "sharded"},
    "two even slots": {"placement": {"slots_per_gpu": 2, "replica_routing": "even"}},
    "spare slots": {"placement": {"slots_per_gpu": 3, "replicas": {"redundant_slots": 5}, "replica_routing": "even"}},
    "apart": {"placement": {"slots_per_gpu": 2, "replica_routing": "even", "replicas_apart": "node"}},
    "one group": {"parallelism": {"dp": 1}, "cluster": {"gpus_per_node": 1}},
    "pinned": {
        "placement": {"slots_per_gpu": 2, "pinned": [{"layer": 1, "expert": 0, "replica": 1, "gpu": 5}]},
    },
}


def compiled(case: str, seed: int) -> Problem:
    instance = tiny_instance(**CASES[case])
    return compile_problem(instance, tiny_traffic(instance, seed))


@settings(max_examples=60)
@given(case=st.sampled_from(sorted(CASES)), seed=st.integers(0, 10**6))
def test_figures_are_those_of_the_layer_and_slots_pins_and_distances_hold(case: str, seed: int) -> None:
    problem = compiled(case, seed)
    found = place_at_once(problem, problem.demand.of(range(len(problem))), problem.replicas, 0, seed)
    for index in range(len(problem)):
        layer = problem.layer(index)
        node, gpu = found.node[index, : layer.items], found.gpu[index, : layer.items]
        assert (found.expert[index, : layer.items] == layer.expert).all()
        assert (gpu // problem.gpus_per_node == node).all()
        assert layer.valid(node)
        assert (np.bincount(gpu, minlength=len(problem.capacity.slots[index])) <= problem.capacity.slots[index]).all()
        assert len({*zip(gpu.tolist(), layer.expert.tolist(), strict=True)}) == layer.items
        assert found.z[index] == pytest.approx(layer.z(node), rel=1e-4, abs=1e-4)
        assert found.busiest_gpu[index] == pytest.approx(np.bincount(gpu, layer.load).max())


@settings(max_examples=30)
@given(data=st.data())
def test_replicas_go_to_experts_by_load_in_all_layers_as_in_one(data: st.DataObject) -> None:
    loads = st.lists(st.integers(0, 50), min_size=4, max_size=4)
    load = np.array(data.draw(st.lists(loads, min_size=1, max_size=3)), dtype=np.float64)
    least = data.draw(st.integers(1, 2))
    total = np.array([data.draw(st.integers(4 * least, 12)) for _ in load])
    most = np.full(len(load), data.draw(st.integers(max(3, least), 8)))
    rows = zip(load, total, most, strict=True)
    each = [replicas_by_load(row, int(count), int(limit), least=least) for row, count, limit in rows]
    assert even_replicas(load, total, most, least).tolist() == [row.tolist() for row in each]


def test_by_hand_the_heaviest_item_goes_first_to_the_gpu_with_fewest_tokens() -> None:
    load, expert = np.array([[9.0, 7.0, 6.0, 5.0, 0.0]]), np.array([[0, 1, 0, 2, -1]])
    slots = np.array([[[2, 2]]])
    # 9 | 7, then 6 to the second, then 5 to what is left; a slot that holds nothing takes none.
    assert even_ranks(load, expert, np.zeros_like(expert), slots).tolist() == [[0, 1, 1, 0, -1]]
    # Where 6 is of the same expert as 7, it goes beside 9.
    assert even_ranks(load, np.array([[0, 1, 1, 2, -1]]), np.zeros_like(expert), slots).tolist() == [[0, 1, 0, 1, -1]]


def test_by_hand_two_nodes_share_four_experts_evenly() -> None:
    two = {"nodes": 2, "gpus_per_node": 1, "fabric": {"nodes_per_leaf": 2, "oversubscription": 1.0}}
    instance = tiny_instance(cluster=two, parallelism={"dp": 1}, placement={"slots_per_gpu": 2})
    plan = QuickPlanner(instance).plan([[8.0, 6.0, 4.0, 2.0]] * 2)
    assert sorted(sorted(gpu) for gpu in plan.experts[0].tolist()) == [[0, 3], [1, 2]]
    assert plan.z.tolist() == [5.0, 5.0]  # of the 10 tokens that each node's experts get, half start on the other node
    assert plan.busiest_gpu.tolist() == [10.0, 10.0]


@pytest.mark.parametrize("case", ["plain", "two even slots", "spare slots", "budget", "shared budget", "failed"])
def test_the_planner_and_the_solver_make_the_same_plan(case: str) -> None:
    instance = tiny_instance(**CASES[case])
    traffic = tiny_traffic(instance, 3)
    problem = compile_problem(instance, traffic)
    plan = QuickPlanner(instance).plan(problem.demand.of(range(len(problem))))
    solution = solve(instance, traffic, solver="quick", baselines=False)
    assert solution.repaired == 0
    for index, rows in enumerate(plan.experts.tolist()):
        held = [sorted(expert for expert in slots if expert >= 0) for slots in rows]
        found: list[list[int]] = [[] for _ in rows]
        for expert, gpus in enumerate(solution.placement.gpu[index]):
            for gpu in gpus:
                found[gpu].append(expert)  # type: ignore[index]
        assert found == held
    assert plan.z == pytest.approx([layer.z for layer in solution.verification.layers], rel=1e-4)
    assert plan.busiest_gpu == pytest.approx(solution.verification.busiest_gpu)


def test_loads_in_all_are_loads_that_start_evenly() -> None:
    instance = tiny_instance(**CASES["two even slots"])
    planner, rng = QuickPlanner(instance), np.random.default_rng(0)
    load = rng.gamma(0.7, 100.0, (planner.layers, planner.experts))
    by_node = np.repeat(load[:, None] / 4, 4, axis=1)
    in_all, apart = planner.plan(load), planner.plan(by_node.tolist())
    assert (in_all.experts == apart.experts).all()
    twice = planner.plan(2 * load)  # of no period in particular
    assert (in_all.experts == twice.experts).all()
    assert twice.z.tolist() == (2 * in_all.z).tolist()


def cut(instance: Instance, layers: int) -> Instance:
    return Instance.model_validate(
        {**instance.model_dump(), "model": {**instance.model.model_dump(), "layers": layers + 1, "dense_layers": [0]}}
    )


@pytest.mark.parametrize("name", ["eplb-288", "h100-128"])
def test_busiest_links_are_better_than_eplb_s_and_busiest_gpus_not_hotter(name: str) -> None:
    instance = cut(load_instance(REPO / "instances" / f"{name}.yaml"), 4)
    problem = compile_problem(instance, load_traffic(instance))
    figures = {}
    for solver in ("eplb", "eplb-global", "quick"):
        results = find_solver(solver).solve(problem, Limits(bounds=False), 0, None, lambda _at, _result: None)
        results = fit_to_gpus(problem, results)
        figures[solver] = sum(result.z for result in results), float(busiest_gpus(problem, results).sum())
    (z, gpus), others = figures.pop("quick"), figures.values()
    assert z < min(other for other, _ in others)
    assert gpus <= min(other for _, other in others) * (1 + 1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {"traffic": {"kind": "trace", "tokens_per_gpu": 100.0}, "objective": {"scenarios": "windows", "windows": 2}},
        {"objective": {"minimise": "layer-time"}},
        {"placement": {"replica_routing": "vllm-hash"}},
        {"cluster": {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}}},
    ],
)
def test_loads_are_planned_for_whatever_else_an_instance_asks(changes: dict[str, Any]) -> None:
    placement = {
        "slots_per_gpu": 2,
        "replicas": {"redundant_slots": 4},
        **changes.get("placement", {"replica_routing": "even"}),
    }
    planner = QuickPlanner(tiny_instance(**{**changes, "placement": placement, "parallelism": {"dp": 1}}))
    plan = planner.plan(np.random.default_rng(0).gamma(0.7, 100.0, (2, 4)))
    for slots in plan.experts:
        held = slots[slots >= 0]
        assert len(held) == 8
        assert set(held.tolist()) == {0, 1, 2, 3}
        assert all(len(set(own[own >= 0].tolist())) == (own >= 0).sum() for own in slots)


def test_what_a_planner_does_not_know_is_refused() -> None:
    pinned = {"pinned": [{"layer": 1, "expert": 0, "replica": 1, "gpu": 5}]}
    for words, changes in {
        "pins replicas": {"placement": pinned},
        "divides every expert over GPUs": VARIANTS["sharded"],
        "asks that replicas survive failures": {"placement": {"survives": "gpu"}},
        "sends tokens once per node or GPU": {"placement": {"dispatch": "per-node"}},
    }.items():
        with pytest.raises(UsageError, match=words):
            QuickPlanner(tiny_instance(**changes))


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (np.ones((2, 5)), r"loads of shape \(2, 5\), expected .* \(2, 4\) or \(2, 4, 4\)"),
        (np.ones(4), r"loads of shape \(4,\)"),
        (np.full((2, 4), -1.0), "a load is below 0 or not finite"),
        (np.full((2, 4), np.nan), "a load is below 0 or not finite"),
    ],
)
def test_loads_that_cannot_be_are_refused(load: np.ndarray, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        QuickPlanner(tiny_instance()).plan(load)


def test_layers_without_a_token_have_a_plan_too() -> None:
    planner = QuickPlanner(tiny_instance(**CASES["two even slots"]))
    plan = planner.plan(np.zeros((2, 4)))
    assert plan.z.tolist() == plan.busiest_gpu.tolist() == [0.0, 0.0]
    assert all(sorted(row) == [0, 0, 1, 1, 2, 2, 3, 3] for row in (rows[rows >= 0].tolist() for rows in plan.experts))
