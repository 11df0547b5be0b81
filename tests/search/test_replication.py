"""Numbers of replicas chosen with the placement in view: against every choice there is, and what each change does."""

from __future__ import annotations

from itertools import combinations_with_replacement, product
from typing import Any

import numpy as np
import pytest
from builders import DRAGONFLY, MESH, every_valid, merged, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import relaxed_bound
from moe_placer.cli.plans import measure_plans
from moe_placer.cli.summary import print_summary
from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.capacity import why_infeasible
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import fewest_replicas, layer_time, with_replicas
from moe_placer.result import Stop
from moe_placer.search.moves import excess, repair
from moe_placer.search.replication import State, replicate
from moe_placer.solve.solve import Solution, solve
from moe_placer.traffic import Traffic

EXPERTS, EXTRA = 4, 4
FREE_OF_CHARGE = {"cluster": {"gpu": {"peak_tflops": 1e6}}}  # whatever a GPU does takes no time: links alone count

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "mesh": {"cluster": {"fabric": MESH}},
    "dragonfly": {"cluster": {"fabric": DRAGONFLY}},
    "spare": {"cluster": {"gpus_per_node": 3}},
    "apart": {"cluster": {"gpus_per_node": 3}, "placement": {"replicas_apart": "node"}},
    "pinned": {"placement": {"pinned": [{"layer": 1, "expert": 0, "gpu": 5}, {"layer": 1, "expert": 2, "gpu": 0}]}},
    "two slots": {"cluster": {"gpus_per_node": 1}, "placement": {"slots_per_gpu": 2}},
}


def free_instance(variant: str = "full", extra: int = EXTRA, **changes: Any) -> Instance:
    """Give 4 experts and ``extra`` redundant slots to 4 nodes of 2 GPUs, in one MoE layer."""
    base: dict[str, Any] = {
        "model": {"layers": 2, "experts": EXPERTS},
        "parallelism": {"dp": 1},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots": extra}},
    }
    return tiny_instance(**merged(merged(base, VARIANTS[variant]), changes))


def free_problem(variant: str, seed: int, **changes: Any) -> Problem:
    instance = free_instance(variant, **changes)
    return compile_problem(instance, tiny_traffic(instance, seed))


def random_replicas(layer: LayerProblem, rng: np.random.Generator) -> np.ndarray:
    most = int(layer.together.sum())
    while True:
        replicas = 1 + rng.multinomial(layer.items - EXPERTS, rng.dirichlet(np.ones(EXPERTS)))
        if replicas.max() <= most:
            return replicas


def random_placed(variant: str, seed: int) -> tuple[LayerProblem, np.ndarray, np.random.Generator]:
    """Draw replicas of a layer, and a valid placement of them."""
    rng = np.random.default_rng(seed)
    layer = free_problem(variant, seed).layer(0)
    while True:
        drawn = with_replicas(layer, random_replicas(layer, rng))
        node = repair(drawn, rng.permutation(np.repeat(np.arange(layer.nodes), layer.slots))[: layer.items], rng)
        if node is not None:
            return drawn, node, rng


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_a_layer_with_other_replicas_is_what_the_instance_compiles_to(variant: str, seed: int) -> None:
    problem = free_problem(variant, seed)
    layer = problem.layer(0)
    replicas = random_replicas(layer, np.random.default_rng(seed))
    mine, theirs = with_replicas(layer, replicas), problem.layer(0, replicas)
    for name in ("expert", "replica", "symmetry_class", "slots", "widest", "together", "pinned", "affected"):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
    for name in ("base", "delta", "load"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-9, atol=1e-9)
    assert mine.replicas_are_free
    assert mine.gpu_price == theirs.gpu_price > 0


@given(loads=st.lists(st.floats(0.0, 1e4), min_size=1, max_size=6), most=st.floats(1.0, 1e4))
@settings(deadline=None)
def test_the_fewest_replicas_are_enough_and_one_fewer_is_not(loads: list[float], most: float) -> None:
    layer = free_problem("full", 0).layer(0)
    single = with_replicas(layer, np.ones(EXPERTS, dtype=np.int64))
    load = np.resize(np.array(loads), EXPERTS)
    object.__setattr__(single, "load", load)
    fewest = fewest_replicas(single, most)
    assert (load / fewest <= most * (1 + 1e-6)).all()
    fewer = np.maximum(1, fewest - 1)
    assert ((load / fewer > most * (1 - 1e-6)) | (fewest == 1)).all()


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_the_cost_of_every_change_of_replicas_is_exact(variant: str, seed: int) -> None:
    layer, node, rng = random_placed(variant, seed)
    state = State(layer, node)
    movable = np.flatnonzero((state.replicas[layer.expert] > 1) & (layer.pinned < 0))
    if not len(movable):
        return
    item = rng.choice(movable, 12)
    expert, to = rng.integers(0, EXPERTS, 12), rng.integers(0, layer.nodes, 12)
    expert[:4], item[8:] = -1, -1  # some only go, some only come
    keep = (item < 0) | (expert < 0) | (layer.expert[item] != expert)
    for i, e, n, cost in zip(item[keep], expert[keep], to[keep], state.costs(item, expert, to)[keep], strict=True):
        changed, placed = state.changed(int(i), int(e), int(n))
        np.testing.assert_allclose(cost, changed.cost(placed), rtol=1e-9, atol=1e-6)
        pins = changed.pinned >= 0
        assert (placed[pins] == node[layer.pinned >= 0]).all()


@pytest.mark.parametrize("variant", ["full", "mesh", "pinned", "two slots"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_best_change_of_replicas_is_the_best_of_all(variant: str, seed: int) -> None:
    layer, node, rng = random_placed(variant, seed)
    state = State(layer, node)
    target = state.z * rng.uniform(0.3, 0.99)
    best = np.inf
    for i, e in product(range(layer.items), range(EXPERTS)):
        if state.replicas[layer.expert[i]] > 1 and layer.pinned[i] < 0 and layer.expert[i] != e:
            changed, placed = state.changed(i, e, int(node[i]))
            if changed.valid(placed):
                best = min(best, float(excess(changed.cost(placed), target)))
    found = state.candidates(np.ones(EXPERTS, dtype=np.int64), target)
    if len(found):
        assert float(excess(state.cost, target)) + found.change[0] == pytest.approx(best, rel=1e-6, abs=1e-6)
        changed, placed = state.changed(*found[0])
        assert changed.valid(placed)
    else:
        assert best == np.inf


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", range(3))
def test_other_replicas_pay_and_break_nothing(variant: str, seed: int) -> None:
    layer, node, rng = random_placed(variant, seed)
    found = replicate(layer, node, relaxed_bound(layer).value, 0.02, rng, Deadline())
    assert found.layer.valid(found.node)
    assert found.layer.items == layer.items
    assert found.z == pytest.approx(found.layer.z(found.node))
    assert found.z <= layer.z(node)
    assert layer_time(found.layer, found.z) <= layer_time(layer, layer.z(node)) * (1 + 1e-9)


def smallest_z(problem: Problem, extra: int) -> tuple[float, float]:
    """Try every choice of replicas and every assignment of these: the least z, and the least with replicas by load."""
    layer, best = problem.layer(0), {}
    for more in combinations_with_replacement(range(EXPERTS), extra):
        replicas = 1 + np.bincount(more, minlength=EXPERTS)
        if replicas.max() > layer.together.sum():
            continue
        chosen = problem.layer(0, replicas)
        best[tuple(replicas)] = min((chosen.z(node) for node in every_valid(chosen)), default=np.inf)
    return min(best.values()), best[tuple(problem.replicas[0])]


@pytest.mark.parametrize("solver", ["auto", "cpsat"])
@pytest.mark.parametrize("variant", ["full", "pinned", "apart"])
def test_the_best_choice_of_replicas_is_found(variant: str, solver: str) -> None:
    differ = 0
    for seed in range(4):
        instance = free_instance(variant, extra=2, cluster={"nodes": 3, **FREE_OF_CHARGE["cluster"]})
        traffic = tiny_traffic(instance, seed)
        problem = compile_problem(instance, traffic)
        least, by_load = smallest_z(problem, 2)
        solution = solve(instance, traffic, solver=solver, limits=Limits(time_s=240, gap=0.0, work=10.0))
        assert solution.verification.total_z == pytest.approx(least, rel=1e-6)
        assert solution.verification.total_bound <= least * (1 + 1e-9)
        claimed = solution.placement.layers[0].solver_bound  # only where the search left no choice of replicas out
        assert claimed is None or claimed <= least * (1 + 1e-6)
        differ += by_load > least * 1.001
    assert differ or variant != "full"  # else replicas by load would have done


def test_where_gpus_are_dear_replicas_stay_by_load() -> None:
    instance = free_instance(extra=2, cluster={"nodes": 3, "gpu": {"peak_tflops": 1e-6}})
    for seed in range(4):
        traffic = tiny_traffic(instance, seed)
        by_load = compile_problem(instance, traffic).replicas[0]
        placement = solve(instance, traffic, limits=Limits(time_s=240, gap=0.0, work=10.0)).placement
        load = compile_problem(instance, traffic).demand.load[0]
        hottest = max(load[e] / len(gpus) for e, gpus in enumerate(placement.gpu[0]))
        assert hottest <= (load / by_load).max() * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["cpsat", "mip"])
def test_a_search_with_given_replicas_proves_nothing_of_others(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_placer.solvers.cpsat._MOST_CHOICES", 0)
    instance = free_instance(extra=2)
    solution = solve(instance, tiny_traffic(instance, 1), solver=solver, limits=Limits(time_s=240, gap=0.0, work=10.0))
    assert solution.gaps[0] > 1e-3
    assert solution.stop == (Stop.FINISHED,)
    assert solution.placement.replicas["copies"] == "chosen by load"
    assert solution.placement.layers[0].solver_bound is None


@pytest.fixture(scope="module")
def rechosen() -> tuple[Instance, Traffic, Solution]:
    """Solve an instance for which other replicas than by load are better."""
    instance = free_instance(extra=2, cluster={"nodes": 3, **FREE_OF_CHARGE["cluster"]})
    for seed in range(20):
        traffic = tiny_traffic(instance, seed)
        solution = solve(instance, traffic, limits=Limits(time_s=240, gap=0.0, work=10.0))
        if solution.placement.replicas["copies"] != "chosen by load":
            return instance, traffic, solution
    raise AssertionError("replicas by load are always best")


def test_the_placement_file_says_how_replicas_were_chosen(rechosen: tuple[Instance, Traffic, Solution]) -> None:
    instance, traffic, solution = rechosen
    problem, facts = compile_problem(instance, traffic), solution.placement.replicas
    replicas = np.array([len(gpus) for gpus in solution.placement.gpu[0]])
    load = problem.demand.load[0]
    growth = (load / replicas).max() / (load / problem.replicas[0]).max()
    assert facts["copies"] == "chosen by auto, other than by load in 1 of 1 MoE layers"
    assert facts["hottest_copy_over_by_load"] == pytest.approx({"mean": growth, "most": growth})
    assert facts["bound_covers_choice_of_copies"] is True
    assert facts["per_layer"] == EXPERTS + 2


def test_the_summary_says_what_other_replicas_cost(
    rechosen: tuple[Instance, Traffic, Solution], capsys: pytest.CaptureFixture[str]
) -> None:
    instance, _, solution = rechosen
    print_summary(instance, solution, measure_plans(instance, solution), None, [])
    growth = solution.placement.replicas["hottest_copy_over_by_load"]["most"] - 1
    assert (
        "Replicas: chosen by auto, other than by load in 1 of 1 MoE layers. Against replicas by load, a layer's "
        f"hottest replica gets {growth:+.2%} tokens on average, {growth:+.2%} at most."
    ) in capsys.readouterr().out


def test_a_start_may_have_other_replicas(rechosen: tuple[Instance, Traffic, Solution]) -> None:
    instance, traffic, best = rechosen
    again = solve(instance, traffic, limits=Limits(time_s=0.0), start=best.placement)
    assert again.placement.gpu == best.placement.gpu
    assert again.verification.total_z == pytest.approx(best.verification.total_z)


def test_a_start_with_more_replicas_is_refused() -> None:
    traffic = tiny_traffic(free_instance(extra=3))
    start = solve(free_instance(extra=3), traffic, solver="lpt").placement
    with pytest.raises(InputError, match="other replicas of experts in layer 1"):
        solve(free_instance(extra=2), traffic, start=start)


def test_more_replicas_than_experts_can_have_are_infeasible() -> None:
    instance = free_instance("apart", extra=8, cluster={"nodes": 2, "gpus_per_node": 6})
    assert "experts can have only 8 with replicas of each on different nodes" in str(why_infeasible(instance))
