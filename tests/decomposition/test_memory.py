"""Memory that binds over layers: its division by prices, the bound that counts it, what a file states of it."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import MESH, level_traffic, merged, rules_of, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.decomposition.memory import divide_memory
from moe_placer.decomposition.memory_rounding import fit_memory
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB, expert_bytes, memory_parts
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import gap
from moe_placer.solve import solve as solving
from moe_placer.solve.solve import Progress, Solution, solve
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.capacity import node_memory_slots

LAYERS = 4


def tight(rooms: dict[int, int], most: int, **changes: Any) -> Instance:
    """Build an instance whose GPUs have memory for ``most`` experts over all MoE layers, or as ``rooms`` says."""
    model = {"layers": LAYERS, "dense_layers": []} | changes.pop("model", {})
    size = tiny_instance(**merged({"model": model, "parallelism": {"dp": 1}}, changes))

    def gigabytes(replicas: int) -> float:
        return (memory_parts(size).total + (replicas + 0.5) * expert_bytes(size)) / GB

    cluster = {
        "gpu": {"memory_gb": gigabytes(most)},
        "gpu_memory_gb": {gpu: gigabytes(replicas) for gpu, replicas in rooms.items()},
    } | changes.pop("cluster", {})
    return tiny_instance(**merged({"model": model, "cluster": cluster, "parallelism": {"dp": 1}}, changes))


def pin(layer: int, expert: int, gpu: int) -> dict[str, int]:
    return {"layer": layer, "expert": expert, "gpu": gpu}


# One GPU a node with two slots, so that nodes' counts are all there is: every joint placement can be tried.
ONE_GPU = {"nodes": 3, "gpus_per_node": 1}
CASES: dict[str, Instance] = {
    "fat tree": tight({0: 3}, 7, cluster=ONE_GPU, placement={"slots_per_gpu": 2}),
    "mesh": tight({}, 6, cluster={**ONE_GPU, "fabric": MESH}, placement={"slots_per_gpu": 2}),
    "unequal": tight({0: 1, 2: 8}, 7, cluster=ONE_GPU, placement={"slots_per_gpu": 2}),
    "pinned": tight(
        {0: 3},
        7,
        cluster=ONE_GPU,
        placement={
            "slots_per_gpu": 2,
            "pinned": [{"layer": 0, "expert": 0, "gpu": 0}, {"layer": 3, "expert": 2, "gpu": 0}],
        },
    ),
}
# Several GPUs a node, unequal within the node, spare slots.
WIDE: dict[str, Instance] = {
    "unequal nodes": tight({0: 2, 1: 2, 5: 0, 7: 4}, 3, cluster={"gpus_per_node": 2}, model={"experts": 5}),
    "two slots": tight(
        {0: 1, 3: 2}, 4, cluster={"gpus_per_node": 2}, placement={"slots_per_gpu": 2}, model={"experts": 6}
    ),
    "two groups": tight({2: 1}, 3, cluster={"gpus_per_node": 3}, parallelism={"dp": 2}),
    "failed": tight({0: 2}, 3, cluster={"gpus_per_node": 3}, placement={"failed_gpus": [4]}, model={"experts": 6}),
    "pinned": tight(
        {0: 1, 1: 1},
        3,
        cluster={"gpus_per_node": 2},
        model={"experts": 5},
        placement={"pinned": [pin(2, 1, 0), pin(1, 3, 1)]},
    ),
    "budget": tight(
        {0: 2},
        3,
        cluster={"gpus_per_node": 3},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 2}},
    ),
}
ALL = {f"small {name}": case for name, case in CASES.items()} | {f"wide {name}": case for name, case in WIDE.items()}


def least_sum(problem: Problem) -> float:
    """Try every joint placement: per layer the least z of each count of items on nodes, then every sum of counts."""
    most = problem.capacity.node_memory_slots
    sums: dict[tuple[int, ...], float] = {(0,) * problem.nodes: 0.0}
    for index in range(len(problem)):
        layer = problem.layer(index)
        least: dict[tuple[int, ...], float] = {}
        for nodes in product(range(layer.nodes), repeat=layer.items):
            node = np.array(nodes)
            count = np.bincount(node, minlength=layer.nodes)
            pins = layer.pinned >= 0
            if (count <= layer.widest).all() and (node[pins] == layer.pinned[pins]).all():
                key = tuple(count.tolist())
                least[key] = min(least.get(key, np.inf), layer.z(node))
        longer: dict[tuple[int, ...], float] = {}
        for (used, total), (count, z) in product(sums.items(), least.items()):
            both = tuple(a + b for a, b in zip(used, count, strict=True))
            if (np.array(both) <= most).all():
                longer[both] = min(longer.get(both, np.inf), total + z)
        sums = longer
    return min(sums.values())


def solved(instance: Instance, traffic: Traffic, **limits: Any) -> Solution:
    return solve(instance, traffic, limits=Limits(**{"time_s": 20.0, "gap": 0.0, "work": 1.5} | limits))


@cache
def solved_case(name: str, seed: int = 0) -> Solution:
    """Solve a case once for all tests that look at its solution."""
    return solved(ALL[name], tiny_traffic(ALL[name], seed))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_the_bound_that_counts_memory_is_below_every_placement_that_fits(name: str, seed: int) -> None:
    instance = CASES[name]
    traffic = tiny_traffic(instance, seed)
    problem = compile_problem(instance, traffic)
    assert problem.capacity.binds
    least = least_sum(problem)
    solution = solved_case(f"small {name}", seed)
    stated, apart = solution.placement.memory, sum(record.bound for record in solution.placement.layers)
    if stated is None:  # then the layers' bounds come to as much
        division = divide_memory(problem, Limits(gap=0.0, work=1.5))
        assert division is not None
        assert division.total <= apart * (1 + 1e-9)
    else:
        assert apart < stated.bound <= least * (1 + 1e-9)
    assert solution.bound == pytest.approx(apart if stated is None else stated.bound)
    assert 0 < solution.bound <= least * (1 + 1e-9)
    assert least * (1 - 1e-9) <= solution.verification.total_z


def test_a_bound_that_is_known_by_hand() -> None:
    # Of a node's 100 tokens 75 choose expert 0; node 0 has memory for 1 expert over both layers. So one layer has both
    # experts on node 1, z = 100, and one has an expert on each node, z = 75. With half of expert 0 on node 0 in each
    # layer, 62.5 tokens go to node 1: in fractions, 125 is the least, proved by that link's weight 1 and a price of 75.
    instance = tight(
        {0: 1},
        3,
        model={"layers": 2, "experts": 2, "top_k": 1},
        cluster={"nodes": 2, "gpus_per_node": 1, "fabric": MESH},
        placement={"slots_per_gpu": 2},
    )
    traffic = level_traffic(instance, [[3, 1], [3, 1]], 4)
    solution = solved(instance, traffic)
    assert solution.verification.total_z == pytest.approx(175)
    assert solution.bound == pytest.approx(150)  # somebody must hold expert 0, in either layer
    division = divide_memory(compile_problem(instance, traffic), Limits(gap=0.0, work=1.5))
    assert division is not None
    assert division.total == pytest.approx(125, rel=1e-4)
    data = solution.placement.model_dump(mode="json", by_alias=True)
    into = next(link for link in solution.verification.links if link.endswith("node1"))
    data["layers"] = [{**record, "bound": 0.0, "proof": "dual", "weights": {into: 1.0}} for record in data["layers"]]
    data["memory"] = {"bound": 125.0, "room_prices": [75.0, 0.0]}
    found = verify(instance, Placement.model_validate(data), traffic)
    assert found.ok
    assert found.memory_bound == pytest.approx(125)


def test_counting_memory_raises_the_bound() -> None:
    raised = 0
    for name in CASES:
        found = solved_case(f"small {name}").verification
        raised += found.memory_bound > sum(layer.bound for layer in found.layers) * (1 + 1e-6)
    assert raised


@pytest.mark.parametrize("name", ALL)
def test_memory_is_never_exceeded(name: str) -> None:
    instance = ALL[name]
    solution = solved_case(name)
    assert solution.verification.ok
    for pin in instance.placement.pinned:
        assert solution.placement.shards(pin.layer, pin.expert)[pin.replica] == (pin.gpu,)


@pytest.mark.parametrize("name", [name for name in ALL if "budget" not in name])
def test_memory_is_divided_at_least_as_well_as_without_prices(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = ALL[name]
    traffic = tiny_traffic(instance, 2)
    priced = solved(instance, traffic).verification.total_z
    monkeypatch.setattr(solving, "divide_memory", lambda *_: None)
    assert priced <= solved(instance, traffic).verification.total_z * (1 + 1e-9)


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_any_fractions_are_rounded_to_slots_that_fit(name: str, seed: int) -> None:
    instance = ALL[name]
    problem = compile_problem(instance, tiny_traffic(instance))
    rng, capacity = np.random.default_rng(seed), problem.capacity
    items = instance.replicas_per_layer
    counts = np.minimum(rng.dirichlet(np.ones(problem.nodes), len(problem)) * items, capacity.widest)
    fitted = fit_memory(problem, counts)
    assert fitted is not None
    slots, gpus = fitted.capacity.node_slots, fitted.capacity.slots
    assert (slots.sum(axis=1) >= items).all()
    assert (gpus.reshape(len(slots), problem.nodes, -1).sum(axis=2) == slots).all()
    assert (gpus.sum(axis=0) <= capacity.usable).all()
    assert (gpus <= capacity.per_gpu).all()
    for (layer, _, _), gpu in problem.pinned.items():
        assert gpus[layer, gpu] >= 1


def test_counts_that_fit_stay_as_they_are() -> None:
    instance = CASES["unequal"]
    problem = compile_problem(instance, tiny_traffic(instance))
    counts = np.array([[0, 2, 2], [0, 2, 2], [1, 1, 2], [0, 2, 2]])
    fitted = fit_memory(problem, counts)
    assert fitted is not None
    assert (fitted.capacity.node_slots >= counts).all()


def test_a_placement_that_was_solved_so_can_be_improved_on() -> None:
    instance = WIDE["unequal nodes"]
    traffic = tiny_traffic(instance)
    first = solved_case("wide unequal nodes")
    for solver in ("auto", "greedy"):
        again = solve(instance, traffic, solver=solver, limits=Limits(work=0.5), start=first.placement)
        if solver == "auto":
            assert again.verification.total_z <= first.verification.total_z * (1 + 1e-9)


def test_no_time_leaves_memory_as_it_was() -> None:
    instance = WIDE["unequal nodes"]
    solution = solve(instance, tiny_traffic(instance), limits=Limits(time_s=0.0))
    assert solution.verification.ok
    assert solution.placement.memory is None
    assert divide_memory(compile_problem(instance, tiny_traffic(instance)), Limits(time_s=0.0)) is not None


def test_progress_counts_memory() -> None:
    instance = CASES["unequal"]
    seen: list[Progress] = []
    solution = solve(instance, tiny_traffic(instance), limits=Limits(gap=0.0, work=2.0), progress=seen.append)
    assert all(progress.objective_bound <= solution.bound * (1 + 1e-9) for progress in seen)
    assert seen[-1].objective_bound == pytest.approx(solution.bound)
    assert seen[-1].worst_gap == pytest.approx(gap(seen[-1].objective, seen[-1].objective_bound))


def test_the_verifier_counts_the_same_memory() -> None:
    for instance in ALL.values():
        problem = compile_problem(instance, tiny_traffic(instance))
        assert node_memory_slots(instance).tolist() == problem.capacity.node_memory_slots.tolist()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("bound", {"bound": 1.001}),
        ("bound", {"room_prices": 1.5}),
        ("proof", {"room_prices": [0.0]}),
    ],
)
def test_a_false_bound_is_reported(rule: str, changes: dict[str, Any]) -> None:
    instance = CASES["unequal"]
    traffic = tiny_traffic(instance)
    data = solved_case("small unequal").placement.model_dump(mode="json", by_alias=True)
    assert rules_of(instance, data, traffic) == []
    assert max(data["memory"]["room_prices"]) > 0
    for key, value in changes.items():
        old = data["memory"][key]
        data["memory"][key] = [value * p for p in old] if isinstance(old, list) and isinstance(value, float) else value
        if key == "bound":
            data["memory"][key] = value * old
    assert rules_of(instance, data, traffic) == [rule]


def test_a_bound_above_the_sum_is_reported_whatever_proves_it() -> None:
    instance = CASES["unequal"]
    traffic = tiny_traffic(instance)
    data = solved_case("small unequal").placement.model_dump(mode="json", by_alias=True)
    data["memory"]["bound"] = 1.01 * sum(record["z"] for record in data["layers"])
    violations = verify(instance, Placement.model_validate(data), traffic).violations
    assert [violation.rule for violation in violations] == ["bound", "bound"]


def test_replicas_that_are_free_have_no_such_bound() -> None:
    instance = WIDE["budget"]
    traffic = tiny_traffic(instance)
    solution = solved_case("wide budget")
    assert solution.placement.memory is None
    data = solution.placement.model_dump(mode="json", by_alias=True)
    data["memory"] = {"bound": 0.0, "room_prices": [0.0] * instance.cluster.nodes}
    assert rules_of(instance, data, traffic) == ["proof"]
