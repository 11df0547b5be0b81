"""One suite that every registered solver runs, driven by what it declares."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from builders import smallest_z, tiny_instance, tiny_tokens, tiny_traffic

from moe_placer.bounds.bounds import Bound, dual_bound
from moe_placer.errors import DefectError, NothingFoundError
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.base import Solver
from moe_placer.solve.registry import find_solver, solver_names
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import Traffic

SOLVERS = solver_names()
PER_NODE = {"coverage", "affinity"}  # serve dispatch once per GPU or node only

# At most 6 items on 3 nodes or 4 on 4, so that every assignment can be tried.
SMALL: dict[str, dict[str, Any]] = {
    "group": {"model": {"experts": 2}, "cluster": {"nodes": 4, "gpus_per_node": 1}},
    "mesh": {"parallelism": {"dp": 1}, "cluster": {"gpus_per_node": 1, "fabric": {"kind": "full-mesh"}}},
    "even": {
        "model": {"experts": 3},
        "cluster": {"nodes": 3},
        "placement": {"replica_routing": "even"},
    },
    "budget": {
        "model": {"experts": 3},
        "cluster": {"nodes": 3},
        "parallelism": {"dp": 1},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots": 2}},
    },
    "failed": {
        "model": {"experts": 5},
        "cluster": {"nodes": 3},
        "parallelism": {"dp": 1},
        "placement": {"failed_gpus": [3]},
    },
    "apart": {
        "model": {"experts": 3},
        "cluster": {"nodes": 3},
        "placement": {"replica_routing": "even", "replicas_apart": "node"},
    },
    "pinned": {
        "parallelism": {"dp": 1},
        "cluster": {"gpus_per_node": 1},
        "placement": {"pinned": [{"layer": 1, "expert": 2, "gpu": 0}, {"layer": 2, "expert": 0, "gpu": 3}]},
    },
    "two slots": {
        "model": {"experts": 3},
        "cluster": {"nodes": 2, "gpus_per_node": 2},
        "placement": {"slots_per_gpu": 2},
    },
    "tokens": {"parallelism": {"dp": 1}, "cluster": {"gpus_per_node": 1}, "objective": {"metric": "tokens"}},
    "sharded": {"parallelism": {"dp": 1, "expert_tp": 2}},
    "per node": {
        "model": {"experts": 6},
        "cluster": {"nodes": 3, "gpus_per_node": 2},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-node"},
    },
    "per node, group": {
        "model": {"experts": 3},
        "cluster": {"nodes": 2, "gpus_per_node": 4},
        "placement": {"dispatch": "per-node"},
    },
    "per node, even": {
        "model": {"experts": 3},
        "cluster": {"nodes": 3},
        "placement": {"dispatch": "per-node", "replica_routing": "even"},
    },
    "per node, budget": {
        "model": {"experts": 4},
        "cluster": {"nodes": 3},
        "parallelism": {"dp": 1},
        "placement": {
            "dispatch": "per-node",
            "replica_routing": "even",
            "replicas": {"redundant_slots": 2},
            "replicas_apart": "node",
            "pinned": [{"layer": 1, "expert": 2, "gpu": 0}],
        },
    },
    "per gpu": {
        "model": {"experts": 6},
        "cluster": {"nodes": 2, "gpus_per_node": 2},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2, "failed_gpus": [3]},
    },
    "per gpu, alone": {
        "cluster": {"gpus_per_node": 1},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-gpu"},
    },
    "survives a leaf": {
        "model": {"experts": 2},
        "cluster": {"nodes": 4, "gpus_per_node": 1},
        "placement": {"survives": "leaf"},
    },
    "survives a node, budget": {
        "model": {"experts": 3},
        "cluster": {"nodes": 3, "gpus_per_node": 3},
        "parallelism": {"dp": 1},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots": 3}, "survives": "node"},
    },
    "one node": {"cluster": {"nodes": 1, "gpus_per_node": 4}, "parallelism": {"dp": 1}},
}


def small(name: str, seed: int = 0) -> tuple[Instance, Traffic]:
    instance = tiny_instance(**SMALL[name])
    once = instance.placement.dispatch != "per-expert"
    return instance, tiny_tokens(instance, seed) if once else tiny_traffic(instance, seed)


@cache
def compiled(name: str) -> tuple[Problem, list[float]]:
    """Compile a small instance; with the least z that each of its layers has with any assignment."""
    problem = compile_problem(*small(name))
    return problem, [smallest_z(problem.layer(index)) for index in range(len(problem))]


def attempt(solver: str, name: str, **limits: Any) -> Solution:
    """Solve, or skip where the solver says in words why it cannot serve this."""
    instance, traffic = small(name)
    reason = find_solver(solver).refuses(compile_problem(instance, traffic))
    if reason:
        assert len(reason.split()) > 3
        with pytest.raises(NothingFoundError, match="cannot serve"):
            solve(instance, traffic, solver=solver)
        pytest.skip(f"{solver} refuses: {reason}")
    # A search that proves nothing uses up its effort.
    effort = {"work": 0.2} if instance.placement.dispatch != "per-expert" else {}
    return solve(instance, traffic, solver=solver, limits=Limits(**{"time_s": 20.0, "gap": 0.0, **effort, **limits}))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("solver", SOLVERS)
def test_placements_are_verified_and_no_better_than_brute_force(solver: str, name: str) -> None:
    solution = attempt(solver, name)
    assert solution.verification.ok
    problem, smallest = compiled(name)
    checked = zip(solution.placement.layers, solution.verification.layers, smallest, strict=True)
    for record, check, least in checked:
        # Where replicas are free, a method may choose others than the problem's: only the bound for any replicas
        # compares.
        assert record.z == pytest.approx(check.z, rel=1e-9, abs=1e-6)
        assert record.bound <= min(least, record.z) * (1 + 1e-9) + 1e-6
        if not problem.replicas_are_free:
            assert record.z >= least * (1 - 1e-9) - 1e-6
        if find_solver(solver).exact:
            assert record.z <= least * (1 + 1e-6) + 1e-6


def larger(solver: str) -> tuple[Instance, Traffic]:
    """Return an instance that takes search, of the dispatch that the solver is for."""
    sizes: dict[str, Any] = {"model": {"experts": 6, "layers": 4}, "cluster": {"gpus_per_node": 3}}
    if solver in PER_NODE:
        instance = tiny_instance(**sizes, placement={"dispatch": "per-node"})
        return instance, tiny_tokens(instance, 3)
    instance = tiny_instance(**sizes)
    return instance, tiny_traffic(instance, 3)


def placed(solver: str, workers: int = 1) -> Placement:
    instance, traffic = larger(solver)
    limits = Limits(time_s=60.0, gap=0.0, work=0.3, workers=workers)
    return solve(instance, traffic, solver=solver, limits=limits, seed=5).placement


@cache
def placed_before(solver: str) -> Placement:
    """What one process has found, solved once for all that is held to it."""
    return placed(solver)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_same_seed_gives_the_same_bytes(solver: str) -> None:
    assert placed(solver).to_json() == placed_before(solver).to_json()


@pytest.mark.parametrize("solver", ["auto", "coverage"])
def test_workers_do_not_change_the_placement(solver: str) -> None:
    one, two = placed_before(solver), placed(solver, workers=2)
    assert one.gpu == two.gpu
    assert one.layers == two.layers


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_time_gives_the_heuristics_start(solver: str, workers: int) -> None:
    instance, traffic = small("per node, group" if solver in PER_NODE else "group")
    solution = solve(instance, traffic, solver=solver, limits=Limits(time_s=0.0, workers=workers))
    assert solution.verification.ok


def test_solvers_say_what_they_are() -> None:
    for name in SOLVERS:
        solver = find_solver(name)
        assert isinstance(solver, Solver)
        assert solver.name == name
        assert solver.summary
        assert solver.source


class Liar(Solver):
    """Claims a bound that is above every placement."""

    name, summary, source = "liar", "claims too much", "this test"

    def solve(self, problem: Any, limits: Any, seed: Any, start: Any, report: Any) -> Any:
        del limits, seed, start
        results = []
        for index in range(len(problem)):
            layer = problem.layer(index)
            node = np.repeat(np.arange(layer.nodes), layer.slots)[: layer.items]
            bound = dual_bound(layer, np.full(layer.links, 1 / layer.links))
            lie = type(bound)(layer.z(node), "dual", bound.weights)
            results.append(LayerResult(node, layer.z(node), lie, Stop.PROVED))
            report(index, results[-1])
        return results


class Sloppy(Liar):
    """Puts everything on one node."""

    def solve(self, problem: Any, limits: Any, seed: Any, start: Any, report: Any) -> Any:
        honest = super().solve(problem, limits, seed, start, report)
        problem_layer = problem.layer(0)
        doubled = honest[0].node.copy()
        doubled[:2] = doubled[0]
        gpu = doubled * problem.gpus_per_node
        z = problem_layer.z(doubled)
        unproved = {"bound": Bound(0.0, "solver"), "stop": Stop.TIME}
        honest[0] = replace(honest[0], node=doubled, gpu=gpu, z=z, **unproved)
        return honest


class Short(Liar):
    """Forgets a layer."""

    def solve(self, problem: Any, limits: Any, seed: Any, start: Any, report: Any) -> Any:
        return super().solve(problem, limits, seed, start, report)[:-1]


@pytest.mark.parametrize("solver", [Liar(), Sloppy(), Short()], ids=["bound", "slots", "layers"])
def test_a_solver_that_lies_is_caught(solver: Solver) -> None:
    instance = tiny_instance(model={"experts": 8}, parallelism={"dp": 1})
    with pytest.raises(DefectError) as caught:
        solve(instance, tiny_traffic(instance), solver=solver)
    assert caught.value.exit_code == 70
