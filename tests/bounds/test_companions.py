"""The bound of hot experts and their companions: true whatever its record says, and derived anew as stated."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import recomputed, rules_of, smallest_z, tiny_instance, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import companions_bound, even_weights
from moe_placer.bounds.fellows import least_addition
from moe_placer.bounds.weighted_companions import weighted_companions
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.solve.solve import solve
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.companions_anew import least_added

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# At most 8 items on 2 places, or 6 on 3: every assignment can be tried.
CASES: dict[str, dict[str, Any]] = {
    "one replica": {
        "model": {"experts": 8, "top_k": 3},
        "cluster": {"nodes": 2, "gpus_per_node": 4},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-node"},
    },
    "two groups": {
        "model": {"experts": 4, "top_k": 2},
        "cluster": {"nodes": 2, "gpus_per_node": 4},
        "placement": {"dispatch": "per-node"},
    },
    "replicas drawn": {
        "model": {"experts": 4, "top_k": 3},
        "cluster": {"nodes": 2, "gpus_per_node": 4},
        "placement": {"dispatch": "per-node", "replica_routing": "even"},
    },
    "spare slots": {
        "model": {"experts": 6, "top_k": 3},
        "cluster": {"nodes": 3, "gpus_per_node": 3},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-node", "failed_gpus": [0, 4]},
    },
    "one slot a node": {
        "model": {"experts": 4, "top_k": 2},
        "cluster": {"nodes": 4, "gpus_per_node": 1},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-node"},
    },
    "GPUs": {
        "model": {"experts": 6, "top_k": 3},
        "cluster": {"nodes": 3, "gpus_per_node": 1},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2},
    },
    "full mesh": {
        "model": {"experts": 6, "top_k": 2},
        "cluster": {"nodes": 3, "fabric": {"kind": "full-mesh"}},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-node"},
    },
}


def case(name: str, seed: int) -> tuple[Instance, Traffic, LayerProblem]:
    instance = tiny_instance(**CASES[name])
    traffic = tiny_tokens(instance, seed)
    return instance, traffic, compile_problem(instance, traffic).layer(0)


def some_node(layer: LayerProblem) -> Ints:
    return np.repeat(np.arange(layer.nodes), layer.slots)[: layer.items]


@cache
def solved(name: str, seed: int) -> tuple[Instance, Traffic, Placement]:
    """Solve a case once for all tests that look at its placement."""
    instance, traffic, _ = case(name, seed)
    limits = Limits(time_s=240.0, gap=0.0, work=0.1)
    return instance, traffic, solve(instance, traffic, limits=limits).placement


def stated(name: str, seed: int) -> tuple[Instance, Traffic, dict[str, Any]]:
    """Return the content of a case's placement file, whose first layer's proof is of this kind."""
    instance, traffic, placement = solved(name, seed)
    data = placement.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert data["layers"][0]["proof"] == "companions"
    return instance, traffic, data


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_placement_is_below_the_bound(name: str, seed: int) -> None:
    layer = case(name, seed)[2]
    bound = companions_bound(layer, some_node(layer), Deadline())
    least = smallest_z(layer)
    assert bound.value <= least * (1 + 1e-9)
    assert (bound.value > 0) == (least > 0)  # with a group on each node nothing need be sent


@pytest.mark.parametrize("name", CASES)
def test_the_verifier_derives_what_is_stated(name: str) -> None:
    instance, traffic, data = stated(name, 1)
    checked = verify(instance, Placement.model_validate(data), traffic)
    assert checked.ok
    assert [check.bound for check in checked.layers] == pytest.approx(
        [record["bound"] for record in data["layers"]], rel=1e-9
    )


@pytest.mark.parametrize("seed", range(3))
def test_of_links_that_the_hot_item_costs_alike_the_one_counts_where_others_add_most(seed: int) -> None:
    """What one of two nodes of a DP group sends the other costs the links up and down alike; only down, others add."""
    instance = tiny_instance(placement={"dispatch": "per-node"})
    traffic = tiny_tokens(instance, seed)
    placement = solve(instance, traffic, limits=Limits(time_s=240.0, gap=0.0, work=0.02)).placement
    checked = verify(instance, placement, traffic)
    assert {record.proof for record in placement.layers} == {"companions"}
    assert [record.bound for record in placement.layers] == pytest.approx(
        [one.bound for one in checked.layers], rel=1e-9
    )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_placement_is_below_the_bound_by_weights(name: str, seed: int) -> None:
    layer = case(name, seed)[2]
    rng = np.random.default_rng(seed)
    weights = [rng.dirichlet(np.ones(layer.links)) for _ in range(2)]
    found = weighted_companions(layer, [*even_weights(layer), *weights])
    assert found is not None
    assert found.value <= smallest_z(layer) * (1 + 1e-9)
    assert found.weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["one replica", "replicas drawn", "one slot a node", "GPUs"])
def test_the_verifier_derives_the_bound_by_weights_as_stated(name: str) -> None:
    instance, traffic, layer = case(name, 3)
    problem = compile_problem(instance, traffic)
    found = weighted_companions(layer, even_weights(layer))
    assert found is not None
    assert found.value > 0
    tables = [[np.flatnonzero(row).tolist() for row in table] for table in found.guess]
    links = zip(problem.links, found.weights.tolist(), strict=True)
    claims = {
        "proof": "weighted-companions",
        "weights": dict(links),
        "companions": {"depth": 0, "order": list(range(instance.model.experts)), "guess": tables},
    }
    gpu = solve(instance, traffic, solver="random").placement.model_dump(mode="json")["gpu"]
    assert recomputed(instance, gpu, traffic, **claims).layers[0].bound == pytest.approx(found.value, rel=1e-9)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_whatever_the_record_says_the_derived_bound_is_true(name: str, seed: int, data: st.DataObject) -> None:
    instance, traffic, layer = case(name, seed)
    experts = instance.model.experts
    views = 1 if instance.placement.replica_routing == "even" else instance.parallelism.dp
    rng = np.random.default_rng(seed)
    guess = [
        [np.flatnonzero(rng.random(experts) < rng.random()).tolist() for _ in range(experts)] for _ in range(views)
    ]
    item = data.draw(st.integers(0, layer.items - 1))
    claims = {
        "proof": "companions",
        "hot": [int(layer.expert[item]), int(layer.replica[item])],
        "companions": {"depth": int(rng.integers(3)), "order": rng.permutation(experts).tolist(), "guess": guess},
    }
    gpu = solve(instance, traffic, solver="random", seed=seed).placement.model_dump(mode="json")["gpu"]
    least = smallest_z(layer)
    links = recomputed(instance, gpu, traffic).links
    weights = dict(zip(links, rng.dirichlet(np.ones(len(links))).tolist(), strict=True))
    for proof in (claims, {**claims, "proof": "weighted-companions", "hot": None, "weights": weights}):
        checked = recomputed(instance, gpu, traffic, **proof)
        assert checked.layers[0].bound <= least * (1 + 1e-12)
        assert "contradiction" not in {violation.rule for violation in checked.violations}


def test_a_case_known_by_hand() -> None:
    """Two nodes of two GPUs, one token set {0, 1, 2}: with expert 0 is at least one other, so all tokens come there."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": 4, "top_k": 3},
        cluster={"nodes": 2, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
        placement={"dispatch": "per-node"},
        traffic={"kind": "trace", "tokens_per_gpu": 1.0},
    )
    topk = np.array([[[0, 1, 2]], [[1, 2, 3]]], dtype=np.uint8)
    load = np.bincount(topk.ravel(), minlength=4).astype(np.float64)[None]
    traffic = Traffic((Recording("hand", load, np.array([2.0]), topk),), np.ones((2, 1)))
    layer = compile_problem(instance, traffic).layer(0)
    # Expert 1 is in both sets, and each node starts two tokens: the other node's two come to it in any case.
    assert companions_bound(layer, some_node(layer), Deadline()).value == pytest.approx(2.0, rel=1e-9)
    assert smallest_z(layer) == pytest.approx(2.0)


def added(alpha: Floats, beta: Floats, members: int) -> float:
    sets = (list(some) for some in combinations(range(len(alpha)), members))
    return min(float(alpha[c].sum() - beta[np.ix_(c, c)].sum()) for c in sets)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 100_000), items=st.integers(1, 8), depth=st.integers(0, 2))
def test_no_set_adds_less_and_both_sides_agree(seed: int, items: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    members = int(rng.integers(1, items + 1))
    beta = rng.integers(0, 120, (items, items))
    np.fill_diagonal(beta, 0)
    alpha = beta.sum(axis=1) + rng.integers(0, 500, items)  # no item ever takes anything away
    value, chosen = least_addition(alpha.astype(float), beta.astype(float), members, depth)
    assert value <= max(0.0, added(alpha, beta, members)) + 1e-9
    assert len(set(chosen.tolist())) == members
    assert value == pytest.approx(least_added(alpha, beta, members, depth))
    assert value >= least_addition(alpha.astype(float), beta.astype(float), members, 0)[0]


def test_branching_on_all_but_one_member_is_exact() -> None:
    rng = np.random.default_rng(5)
    alpha, beta = rng.uniform(50, 100, 7), rng.uniform(0, 10, (7, 7))
    np.fill_diagonal(beta, 0)
    assert least_addition(alpha, beta, 3, 2)[0] == pytest.approx(added(alpha, beta, 3))
    assert least_addition(alpha, beta, 2, 1)[0] == pytest.approx(added(alpha, beta, 2))


MUTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no companions": ({"companions": None}, "proof"),
    "no hot replica": ({"hot": None}, "proof"),
    "a hot replica that is none": ({"hot": [99, 0]}, "proof"),
    "an expert twice in the order": ({"companions.order": [0, 0, 1, 2, 3, 4, 5, 6]}, "proof"),
    "guesses of another shape": ({"companions.guess": [[[1]]]}, "proof"),
    "a guess that is no expert": ({"companions.guess": [[[8]] * 8]}, "proof"),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_proof_that_lacks_something_is_reported(what: str) -> None:
    instance, traffic, data = stated("one replica", 2)
    changes, rule = MUTATIONS[what]
    changed = deepcopy(data)
    for path, value in changes.items():
        *outer, last = path.split(".")
        place = changed["layers"][0]
        for key in outer:
            place = place[key]
        place[last] = value
    assert rules_of(instance, changed, traffic) == [rule]


def test_a_bound_that_the_proof_does_not_give_is_reported() -> None:
    instance, traffic, data = stated("one replica", 2)
    data["layers"][0]["bound"] *= 1.001
    assert "bound" in rules_of(instance, data, traffic)


def test_it_proves_nothing_where_every_expert_gets_a_replica() -> None:
    instance = tiny_instance(parallelism={"dp": 1}, cluster={"gpus_per_node": 1}, traffic={"kind": "trace"})
    traffic = tiny_tokens(instance)
    companions = {"depth": 0, "order": [0, 1, 2, 3], "guess": [[[]] * 4]}
    gpu = [[[e] for e in range(4)] for _ in instance.moe_layers]
    checked = recomputed(instance, gpu, traffic, proof="companions", hot=(0, 0), companions=companions)
    assert "proof" in {violation.rule for violation in checked.violations}
    assert checked.layers[0].bound == 0
