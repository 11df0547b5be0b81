"""What is said of instances: feasible or not, optimal or not; each file in cases/ was once judged wrongly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import level_traffic, tiny_instance
from click.testing import CliRunner

from moe_placer.cli.commands import cli
from moe_placer.errors import InfeasibleError, InputError
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.sizes import GB, expert_bytes, memory_parts
from moe_placer.limits import Limits
from moe_placer.placement import load_placement
from moe_placer.problem.capacity import find_capacity, why_infeasible
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.shortage import find_shortage
from moe_placer.result import Status, Stop
from moe_placer.solve.registry import BUILT_IN, find_solver
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import load_traffic
from moe_placer.verifier import verify

CASES = Path(__file__).parents[1] / "cases"
SOLVERS = [name for name in BUILT_IN if name not in {"coverage", "affinity"}]


def solved(case: str, solver: str = "auto", **limits: Any) -> Solution:
    instance = load_instance(CASES / f"{case}.yaml")
    return solve(instance, solver=solver, limits=Limits(**{"time_s": 60.0, "gap": 0.0, "work": 1.0} | limits))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", ["tp8", "tp8b", "shard-crash", "shard-odd-failures", "30202", "shared1", "10215"])
def test_what_is_feasible_gets_a_verified_placement(case: str, solver: str) -> None:
    instance = load_instance(CASES / f"{case}.yaml")
    if reason := find_solver(solver).refuses(compile_problem(instance, load_traffic(instance))):
        assert (solver, case) == ("contiguous", "30202"), reason
        return
    solution = solved(case, solver, work=0.5)
    assert solution.verification.ok
    assert solution.bound <= solution.objective * (1 + 1e-9)
    for pin in instance.placement.pinned:
        assert solution.placement.shards(pin.layer, pin.expert)[pin.replica] == (pin.gpu,)


def test_a_placement_that_verifies_is_not_called_infeasible() -> None:
    instance = load_instance(CASES / "shared1.yaml")
    violations = verify(instance, load_placement(CASES / "shared1.json")).violations
    assert [violation.rule for violation in violations] == ["facts"]  # it says that it was made for no budget at all
    assert solved("shared1").placement.replicas["redundant_in_all"] == 0


def test_pins_that_exclude_each_other_are_bad_input_and_named() -> None:
    with pytest.raises(InputError) as caught:
        load_instance(CASES / "pins.yaml")
    (mistake,) = caught.value.mistakes
    assert (mistake.path, mistake.line) == ("placement.pinned[1]", 4)
    assert mistake.found == "experts 1 and 2 pinned to GPU 1 in layer 0"
    done = CliRunner().invoke(cli, ["solve", str(CASES / "pins.yaml")])
    assert isinstance(done.exception, InputError)


TWO_REPLICAS = {"parallelism": {"dp": 2}, "cluster": {"nodes": 2, "gpus_per_node": 3}}


@pytest.mark.parametrize(
    ("apart", "gpus", "found"),
    [
        ("gpu", (3, 3), "replicas 0 and 1 of expert 2 on gpu 3 in layer 1"),
        ("node", (3, 5), "replicas 0 and 1 of expert 2 on node 1 in layer 1"),
        ("gpu", (3, 5), None),
        ("none", (3, 3), None),
    ],
)
def test_pinned_replicas_of_one_expert_keep_apart(apart: str, gpus: tuple[int, int], found: str | None) -> None:
    pins = [{"layer": 1, "expert": 2, "replica": r, "gpu": gpu} for r, gpu in enumerate(gpus)]
    changes = {**TWO_REPLICAS, "placement": {"pinned": pins, "replicas_apart": apart, "slots_per_gpu": 3}}
    if found is None:
        assert tiny_instance(**changes)
        return
    with pytest.raises(InputError, match=found):
        tiny_instance(**changes)


@pytest.mark.parametrize(
    ("survives", "gpus", "found"),
    [
        ("node", (2, 3), "all replicas of expert 2 on node 1 in layer 1, expected several nodes"),
        ("leaf", (1, 3), "all replicas of expert 2 on leaf 0 in layer 1, expected several leaves"),
        ("node", (1, 3), None),
        ("leaf", (3, 4), None),
        ("gpu", (2, 3), None),
    ],
)
def test_pinned_replicas_of_one_expert_survive(survives: str, gpus: tuple[int, int], found: str | None) -> None:
    pins = [{"layer": 1, "expert": 2, "replica": r, "gpu": gpu} for r, gpu in enumerate(gpus)]
    placement = {"pinned": pins, "survives": survives}
    if found is None:
        assert tiny_instance(placement=placement)
        return
    with pytest.raises(InputError, match=found):
        tiny_instance(placement=placement)


def test_pins_beyond_the_memory_of_their_gpu_are_named() -> None:
    instance = load_instance(CASES / "30202.yaml")  # GPUs have room for one expert over three layers
    pins = [{"layer": layer, "expert": 1, "gpu": 7} for layer in range(3)]
    crowded = instance.model_validate({**instance.model_dump(), "placement": {"pinned": pins}})
    with pytest.raises(InfeasibleError, match=r"pins 3 replicas to GPU 7 \(expert 1 of layer 0, .* holds only 1\."):
        find_capacity(crowded)


def test_where_replicas_are_free_only_a_bound_for_any_replicas_makes_a_layer_optimal() -> None:
    found = {solver: solved("10139", solver, time_s=120.0, work=6.0) for solver in ("auto", "cpsat", "greedy")}
    z = {solver: [record.z for record in solution.placement.layers] for solver, solution in found.items()}
    least = np.min(list(z.values()), axis=0)
    for solver, solution in found.items():
        for layer, (record, status) in enumerate(zip(solution.placement.layers, solution.status, strict=True)):
            if status is Status.OPTIMAL:
                assert record.any_copies
                assert record.bound == pytest.approx(record.z, rel=1e-6)
                assert record.z <= least[layer] * (1 + 1e-6), solver
            assert record.solver_bound is None


@pytest.mark.parametrize("replicas", [{"redundant_slots": 0}, {"redundant_slots_in_all": 0}])
@pytest.mark.parametrize("solver", ["auto", "cpsat", "mip", "greedy"])
def test_a_budget_of_nothing_leaves_nothing_free(solver: str, replicas: dict[str, int]) -> None:
    """The gap is that of one replica of each expert: bounds count slots, and the search may prove what is best."""
    load = [[900.0, 30.0, 40.0, 50.0], [10.0, 20.0, 30.0, 40.0]]
    one = {"parallelism": {"dp": 1}, "cluster": {"gpus_per_node": 1, "fabric": {"kind": "full-mesh"}}}
    given, budget = (
        tiny_instance(**one, placement={"replica_routing": "even", "replicas": either}) for either in ("dp", replicas)
    )
    found = []
    for instance in (given, budget):
        traffic = level_traffic(instance, load, 1000.0)
        found.append(solve(instance, traffic, solver=solver, limits=Limits(time_s=60.0, gap=0.0, work=1.0)))
    dp, none = found
    assert not compile_problem(budget, level_traffic(budget, load, 1000.0)).replicas_are_free
    assert none.placement.gpu == dp.placement.gpu
    assert none.placement.layers == dp.placement.layers
    assert none.status == dp.status
    assert none.placement.replicas["bound_covers_choice_of_copies"] is True
    assert none.bound == dp.bound > 0


def test_where_memory_binds_auto_bounds_at_least_as_well_as_greedy() -> None:
    auto, greedy = solved("10215"), solved("10215", "greedy")
    assert auto.bound >= greedy.bound * (1 - 1e-9)
    assert auto.objective == pytest.approx(326.0937, rel=1e-6)  # the optimum
    assert auto.status == (Status.OPTIMAL, Status.OPTIMAL)
    assert auto.stop == (Stop.PROVED, Stop.PROVED)


@pytest.mark.parametrize("time_s", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("case", ["shared", "shared1", "10139", "30202"])
def test_auto_never_ends_worse_than_a_baseline_that_it_prints(case: str, time_s: float) -> None:
    solution = solved(case, time_s=time_s, work=None)
    printed = [value for value in solution.baselines.values() if isinstance(value, float)]
    assert printed
    assert solution.objective <= min(printed) * (1 + 1e-9)


def test_what_no_rule_forbids_alone_all_rules_may() -> None:
    """One expert, a replica on either node in both layers; node 0 has room for one of them, node 1 for three."""
    changes = {
        "model": {"layers": 2, "dense_layers": [], "experts": 1, "top_k": 1},
        "parallelism": {"dp": 2},
        "placement": {"replicas_apart": "node", "slots_per_gpu": 2, "replica_routing": "even"},
    }
    two_nodes = {"nodes": 2, "gpus_per_node": 1}
    size = tiny_instance(**changes, cluster=two_nodes)

    def with_rooms(*rooms: int) -> Instance:
        gigabytes = [(memory_parts(size).total + (room + 0.5) * expert_bytes(size)) / GB for room in rooms]
        return tiny_instance(**changes, cluster={**two_nodes, "gpu_memory_gb": dict(enumerate(gigabytes))})

    feasible, crowded = with_rooms(2, 2), with_rooms(1, 3)
    assert find_shortage(crowded) is None
    assert find_capacity(feasible).slots.tolist() == [[1, 1], [1, 1]]
    with pytest.raises(InfeasibleError, match="leave no placement, although each alone would"):
        find_capacity(crowded)
    assert "leave no placement" in str(why_infeasible(crowded))


def test_told_by_the_command_line() -> None:
    done = CliRunner().invoke(cli, ["inspect", str(CASES / "shared1.yaml")])
    assert done.exit_code == 0
    assert "Verdict: feasible." in done.output
    told = json.loads(CliRunner().invoke(cli, ["inspect", str(CASES / "tp8.yaml"), "--json"]).output)
    assert (told["slots_per_layer"], told["infeasible"]) == (
        6,
        None,
    )  # node 1 has seven working GPUs, none for 8 shards
