"""The aggregate objective: all layers jointly, its bound, what a file states of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import MESH, every_valid, honest, recomputed, rules_of, tiny_instance, tiny_tokens, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.cli.describe import describe
from moe_placer.cli.plans import measure_plans
from moe_placer.cli.summary import _share, print_summary
from moe_placer.decomposition.aggregate import aggregate_bound, bound_jointly, link_totals
from moe_placer.decomposition.column_generation import Decomposition
from moe_placer.errors import NothingFoundError
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement, load_placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import Stop
from moe_placer.solve.registry import find_solver
from moe_placer.solve.solve import Progress, Solution, solve
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import verify

AGGREGATE = {"minimise": "aggregate"}
# Two layers of 4 items on 4 nodes, or 3 layers of 3 items on 3 nodes: every joint placement can be tried.
CASES: dict[str, dict[str, Any]] = {
    "fat tree": {"cluster": {"gpus_per_node": 1}, "parallelism": {"dp": 1}},
    "mesh": {"cluster": {"gpus_per_node": 1, "fabric": MESH}, "parallelism": {"dp": 1}},
    "three layers": {
        "model": {"layers": 4, "experts": 3},
        "cluster": {"nodes": 3, "gpus_per_node": 1},
        "parallelism": {"dp": 1},
    },
    "even": {
        "model": {"experts": 2},
        "cluster": {"gpus_per_node": 1},
        "placement": {"replica_routing": "even"},
    },
    "budget": {
        "model": {"experts": 3},
        "cluster": {"nodes": 4, "gpus_per_node": 1},
        "parallelism": {"dp": 1},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots": 1}},
    },
    "pinned": {
        "cluster": {"gpus_per_node": 1},
        "parallelism": {"dp": 1},
        "placement": {"pinned": [{"layer": 1, "expert": 2, "gpu": 0}, {"layer": 2, "expert": 0, "gpu": 3}]},
    },
}


def case(name: str, **changes: Any) -> Instance:
    return tiny_instance(**CASES[name], objective=AGGREGATE | changes)


def least_aggregate(problem: Problem) -> float:
    """Try every joint placement."""
    costs = []
    for index in range(len(problem)):
        layer = problem.layer(index)
        costs.append(np.array([layer.cost(node) for node in every_valid(layer)]))
    totals = costs[0]
    for own in costs[1:]:
        totals = np.unique((totals[:, None] + own[None]).reshape(-1, totals.shape[1]), axis=0)
    return float(totals.max(axis=1).min())


def solved(instance: Instance, traffic: Traffic, **limits: Any) -> Solution:
    return solve(instance, traffic, limits=Limits(**{"time_s": 20.0, "gap": 0.0, "work": 1.0} | limits))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_joint_optimum_lies_between_bound_and_result(name: str, seed: int) -> None:
    instance = case(name)
    traffic = tiny_traffic(instance, seed)
    least = least_aggregate(compile_problem(instance, traffic))
    solution = solved(instance, traffic)
    assert solution.minimise == "aggregate"
    assert 0 < solution.bound <= least * (1 + 1e-9)
    assert solution.objective == pytest.approx(least, rel=1e-9)
    assert solution.objective == pytest.approx(solution.placement.aggregate.value)


def test_it_can_be_less_than_what_the_layers_apart_give() -> None:
    instance, apart = case("mesh"), case("mesh", minimise="layers")
    better = 0
    for seed in range(4):
        traffic = tiny_traffic(instance, seed)
        one, other = solved(apart, traffic), solved(instance, traffic)
        assert other.verification.aggregate <= one.verification.aggregate * (1 + 1e-9)
        assert one.verification.total_z <= other.verification.total_z * (1 + 1e-9)
        better += other.verification.aggregate < one.verification.aggregate * (1 - 1e-6)
    assert better


@given(seed=st.integers(0, 10_000), name=st.sampled_from(sorted(CASES)))
@settings(max_examples=8, deadline=None)
def test_the_decompositions_bounds_add_up_to_the_best(seed: int, name: str) -> None:
    problem = compile_problem(instance := case(name), tiny_traffic(instance, seed))
    layers = [problem.layer(index) for index in range(len(problem))]
    relaxation = Decomposition(layers)
    lower, upper = [], []
    for _ in relaxation.rounds(1e-7, 100.0, Deadline()):
        lower.append(relaxation.bound)
        upper.append(relaxation.value)
    assert lower == sorted(lower)
    assert relaxation.value == pytest.approx(min(upper), rel=1e-7)
    assert relaxation.bound == pytest.approx(relaxation.value, rel=1e-6)
    bounds = bound_jointly(layers, Limits(gap=1e-6))
    assert aggregate_bound(bounds) <= relaxation.value * (1 + 1e-9)
    assert sum(share.sum() for share in relaxation.share) == pytest.approx(len(layers))
    bounds[0] = type(bounds[0])(bounds[0].value, "dual", np.roll(relaxation.weights, 1))
    assert aggregate_bound(bounds) == 0.0, "weights that differ add up to nothing"


def is_around(solution: Solution, least: float) -> bool:
    """Whether the smallest aggregate is between bound and value: all that holds of a search that effort ends."""
    return solution.bound <= least * (1 + 1e-9) and least <= solution.objective * (1 + 1e-9)


@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 1000.0))
@settings(max_examples=3, deadline=None)
def test_scaling_the_tokens_scales_the_aggregate(seed: int, factor: float) -> None:
    instance, scaled = case("three layers"), case("three layers")
    scaled = scaled.model_copy(update={"traffic": scaled.traffic.model_copy(update={"tokens_per_gpu": 100.0 * factor})})
    traffic = tiny_traffic(instance, seed)
    least = least_aggregate(compile_problem(instance, traffic))
    assert least_aggregate(compile_problem(scaled, traffic)) == pytest.approx(least * factor, rel=1e-9)
    one, other = (solved(which, traffic, work=1.0) for which in (instance, scaled))
    assert is_around(one, least)
    assert is_around(other, least * factor)
    gpu = one.placement.model_dump(mode="json")["gpu"]
    assert recomputed(scaled, gpu, traffic).aggregate == pytest.approx(one.objective * factor, rel=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=3, deadline=None)
def test_relabelling_experts_keeps_the_aggregate(seed: int) -> None:
    instance = case("three layers")
    traffic = tiny_traffic(instance, seed)
    order = np.random.default_rng(seed).permutation(instance.model.experts)
    relabelled = Traffic(tuple(Recording(r.name, r.load[:, order], r.tokens) for r in traffic.recordings), traffic.mix)
    least = least_aggregate(compile_problem(instance, traffic))
    assert least_aggregate(compile_problem(instance, relabelled)) == pytest.approx(least, rel=1e-9)
    one, other = (solved(instance, which, work=1.0) for which in (traffic, relabelled))
    assert is_around(one, least)
    assert is_around(other, least)
    gpu = [[layer[expert] for expert in order] for layer in one.placement.model_dump(mode="json")["gpu"]]
    assert recomputed(instance, gpu, relabelled).aggregate == pytest.approx(one.objective, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_every_file_states_an_aggregate_that_is_at_most_the_sum_of_z(name: str) -> None:
    instance = case(name, minimise="layers")
    solution = solved(instance, tiny_traffic(instance))
    stated, found = solution.placement.aggregate, solution.verification
    assert stated is not None
    assert stated.bound is None
    assert stated.value == pytest.approx(found.aggregate)
    assert found.max_z <= found.aggregate <= found.total_z * (1 + 1e-12)


def test_heuristics_are_compared_by_it_and_bounded() -> None:
    instance = case("mesh")
    traffic = tiny_traffic(instance)
    problem = compile_problem(instance, traffic)
    greedy = solve(instance, traffic, solver="greedy")
    assert greedy.baselines["greedy"] == pytest.approx(greedy.verification.aggregate)
    assert 0 < greedy.bound <= least_aggregate(problem) * (1 + 1e-9)
    method = find_solver("greedy")
    results = method.solve(problem, Limits(), 0, None, lambda _index, _result: None)
    assert greedy.baselines["greedy"] == pytest.approx(link_totals(problem, results).max())


@pytest.mark.parametrize("name", ["cpsat", "mip"])
def test_methods_that_take_layers_apart_refuse(name: str) -> None:
    instance = case("mesh")
    with pytest.raises(NothingFoundError, match="minimise: aggregate needs all layers jointly"):
        solve(instance, tiny_traffic(instance), solver=name)


def test_progress_tells_of_the_aggregate() -> None:
    instance = case("mesh")
    seen: list[Progress] = []
    solution = solve(instance, tiny_traffic(instance), limits=Limits(gap=0.0, work=2.0), progress=seen.append)
    assert {progress.minimise for progress in seen} == {"aggregate"}
    assert seen[-1].objective == pytest.approx(solution.objective)
    assert seen[-1].objective_bound <= solution.bound * (1 + 1e-9)
    assert seen[-1].objective_bound > 0
    assert seen[0].objective == min(total for total in solution.baselines.values() if isinstance(total, float))


def test_an_interrupted_search_keeps_its_best() -> None:
    instance = tiny_instance(model={"experts": 8, "layers": 9}, cluster={"gpus_per_node": 4}, objective=AGGREGATE)
    asked = iter([False] * 40)
    solution = solve(instance, tiny_traffic(instance), limits=Limits(gap=0.0), interrupted=lambda: next(asked, True))
    assert solution.verification.ok
    assert set(solution.stop) == {Stop.INTERRUPTED}
    starts = [total for total in solution.baselines.values() if isinstance(total, float)]
    assert solution.objective <= min(starts) * (1 + 1e-9)


def test_the_file_keeps_what_it_states(tmp_path: Path) -> None:
    instance = case("mesh")
    traffic = tiny_traffic(instance)
    solution = solved(instance, traffic)
    solution.placement.write(tmp_path / "placement.json")
    read = load_placement(tmp_path / "placement.json")
    assert read.aggregate == solution.placement.aggregate
    assert verify(instance, read, traffic).aggregate_bound == solution.verification.aggregate_bound


def test_the_default_objective_does_not_change_the_instances_hash() -> None:
    assert tiny_instance(objective={"minimise": "layers"}).sha256 == tiny_instance().sha256
    assert tiny_instance(objective=AGGREGATE).sha256 != tiny_instance().sha256


def stated(instance: Instance, traffic: Traffic) -> dict[str, Any]:
    """Return a placement file's content with an honest aggregate."""
    data = honest(instance, traffic)
    found = verify(instance, Placement.model_validate(data), traffic)
    weights = {link: 1 / len(found.links) for link in found.links}
    claim = {"value": found.aggregate, "worst_link": found.aggregate_link, "proof": "dual", "weights": weights}
    data["aggregate"] = {**claim, "bound": 0.0}
    data["aggregate"]["bound"] = verify(instance, Placement.model_validate(data), traffic).aggregate_bound
    return data


def test_an_honest_aggregate_is_accepted() -> None:
    instance = case("fat tree")
    traffic = tiny_traffic(instance)
    data = stated(instance, traffic)
    assert rules_of(instance, data, traffic) == []
    apart = recomputed(instance, data["gpu"], traffic, proof="dual", weights=data["aggregate"]["weights"])
    assert data["aggregate"]["bound"] == pytest.approx(sum(layer.bound for layer in apart.layers))
    assert data["aggregate"]["bound"] > 0


def coldest(instance: Instance, traffic: Traffic) -> str:
    found = verify(instance, Placement.model_validate(honest(instance, traffic)), traffic)
    return found.links[int(found.cost.sum(axis=0).argmin())]


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("aggregate", {"value": 1.001}),
        ("bound", {"bound": 1.001}),
        ("worst-link", {"worst_link": "coldest"}),
        ("worst-link", {"worst_link": "nowhere"}),
        ("worst-link", {"worst_link": ""}),
        ("weights", {"weights": None}),
        ("weights", {"weights": {"nowhere": 1.0}}),
        ("weights", {"weights": {"coldest": 0.5}}),
        ("bound", {"weights": {"coldest": 1.0}}),
        ("proof", {"bound": None}),
        ("proof", {"any_copies": True}),
    ],
)
def test_a_false_aggregate_is_reported(rule: str, changes: dict[str, Any]) -> None:
    instance = case("fat tree")
    traffic = tiny_traffic(instance)
    data, cold = stated(instance, traffic), coldest(instance, traffic)
    for key, value in changes.items():
        if isinstance(value, float):
            value = value * data["aggregate"][key]
        elif isinstance(value, dict):
            value = {cold if name == "coldest" else name: weight for name, weight in value.items()}
        data["aggregate"][key] = cold if value == "coldest" else value
    assert rules_of(instance, data, traffic) == [rule]


def test_a_bound_above_the_aggregate_is_reported_whatever_its_proof() -> None:
    instance = case("fat tree")
    traffic = tiny_traffic(instance)
    data = stated(instance, traffic)
    data["aggregate"]["bound"] = data["aggregate"]["value"] * 1.01
    violations = verify(instance, Placement.model_validate(data), traffic).violations
    assert [violation.rule for violation in violations] == ["bound", "bound"]
    assert "of its busiest link" in str(violations[1])


def test_people_read_what_was_minimised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instance = case("mesh")
    solution = solve(instance, tiny_traffic(instance), limits=Limits(gap=0.5))
    print_summary(instance, solution, measure_plans(instance, solution), None, [tmp_path / "placement.json"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "busiest link over all" in shown
    assert f"{_share(solution.gap)} for the busiest link over all layers" in shown
    assert f"(sum of busiest links: cost {solution.verification.total_z:,.0f})" in shown
    assert "Minimised: the largest total of any link over all layers" in describe(instance, None).to_text()


@pytest.mark.parametrize("dispatch", ["per-node", "per-gpu"])
def test_one_pass_methods_state_no_bound_where_tokens_go_once_per_place(dispatch: str) -> None:
    instance = tiny_instance(objective=AGGREGATE, placement={"dispatch": dispatch, "slots_per_gpu": 2})
    found = solve(instance, tiny_tokens(instance), solver="contiguous")
    assert found.verification.ok
    assert found.placement.aggregate is not None
    assert found.placement.aggregate.bound is None
    assert {record.proof for record in found.placement.layers} == {"solver"}
