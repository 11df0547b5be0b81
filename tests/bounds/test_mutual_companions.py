"""The bound by pairs of companions: true of every placement with any numbers of replicas, and derived as stated."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from fractions import Fraction
from functools import cache
from itertools import combinations, permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from brute_force import BruteForce
from builders import in_order, recomputed, rules_of, tiny_instance, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.assignment import assign_to_slots
from moe_placer.bounds.bounds import companions_bound, even_weights
from moe_placer.bounds.mutual_companions import mutual_companions
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.solve.solve import solve
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import verify
from moe_placer.verifier.sending import check_proof_fits

Floats = npt.NDArray[np.float64]

_MODEL = {"layers": 1, "dense_layers": [], "experts": 4, "top_k": 3}
_FREE = {"dispatch": "per-node", "replica_routing": "even", "replicas": {"redundant_slots": 2}}
# Few enough replicas and GPUs that all numbers of replicas in all places can be tried.
CASES: dict[str, dict[str, Any]] = {
    "redundant slots": {
        "model": _MODEL,
        "cluster": {"nodes": 2, "gpus_per_node": 3},
        "parallelism": {"dp": 1},
        "placement": _FREE,
    },
    "a slot to spare, another rule that draws": {
        "model": {**_MODEL, "experts": 3, "top_k": 2},
        "cluster": {"nodes": 3, "gpus_per_node": 2},
        "parallelism": {"dp": 1},
        "placement": {**_FREE, "replica_routing": "trtllm-round-robin", "replicas_apart": "node"},
    },
    "slots that layers share, full mesh": {
        "model": {**_MODEL, "experts": 3, "top_k": 2},
        "cluster": {"nodes": 3, "gpus_per_node": 2, "fabric": {"kind": "full-mesh"}},
        "parallelism": {"dp": 1},
        "placement": {**_FREE, "replicas": {"redundant_slots_in_all": 2}, "failed_gpus": [0]},
    },
    "GPUs": {
        "model": _MODEL,
        "cluster": {"nodes": 3, "gpus_per_node": 1},
        "parallelism": {"dp": 1},
        "placement": {**_FREE, "dispatch": "per-gpu", "slots_per_gpu": 2},
    },
    "replicas given": {
        "model": {**_MODEL, "experts": 3, "top_k": 2},
        "cluster": {"nodes": 2, "gpus_per_node": 3},
        "placement": {"dispatch": "per-node", "replica_routing": "even"},
    },
    "groups": {
        "model": {**_MODEL, "experts": 3, "top_k": 2},
        "cluster": {"nodes": 2, "gpus_per_node": 3},
        "placement": {"dispatch": "per-node"},
    },
}


@cache
def case(name: str, seed: int) -> tuple[Instance, Traffic, Problem, Fraction]:
    """Return a case, and the least z of all of its placements."""
    instance = tiny_instance(**CASES[name])
    traffic = tiny_tokens(instance, seed, tokens=(9, 14))
    brute = BruteForce(instance, traffic)
    assert brute.possible
    return instance, traffic, compile_problem(instance, traffic), brute.best_of_layer(0)


def record_of(instance: Instance, links: Sequence[str], found: Any) -> dict[str, Any]:
    """Return what a record states for this proof."""
    experts = range(instance.model.experts)
    near = [[[(j, int(row[j])) for j in experts if j > i and row[j]] for i, row in enumerate(t)] for t in found.near]
    return {
        "proof": "mutual-companions",
        "weights": dict(zip(links, found.weights.tolist(), strict=True)),
        "mutual": {"near": near, "prices": found.prices.tolist()},
        "any_copies": True if instance.placement.draws_evenly else None,
    }


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_no_placement_with_any_numbers_of_replicas_is_below_the_bound(name: str, seed: int) -> None:
    instance, traffic, problem, least = case(name, seed)
    rng, layer = np.random.default_rng(seed), problem.layer(0)
    for weights in [even_weights(layer), [rng.dirichlet(np.ones(layer.links))]]:
        found = mutual_companions(layer, weights, Deadline())
        assert found is not None
        assert 0 <= found.value <= float(least) * (1 + 1e-9)
        checked = recomputed(instance, in_order(instance), traffic, **record_of(instance, problem.links, found)).layers[
            0
        ]
        assert checked.bound == pytest.approx(found.value, rel=1e-9, abs=1e-9)
        assert checked.bound_given_replicas is None
        assert Fraction(checked.bound) <= least
    assert least == 0 or found.value > 0 or name == "groups"


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(data=st.integers(0, 2**32 - 1))
def test_whatever_the_record_says_the_derived_bound_is_true(name: str, data: int) -> None:
    instance, traffic, _, least = case(name, 1)
    rng, experts = np.random.default_rng(data), instance.model.experts
    views = 1 if instance.placement.draws_evenly else instance.parallelism.dp
    parts = np.triu(rng.integers(0, 65, (views, experts, experts)) * (rng.random((views, experts, experts)) < 0.6), 1)
    links = recomputed(instance, in_order(instance), traffic).links
    claims = {
        "proof": "mutual-companions",
        "weights": dict(zip(links, rng.dirichlet(np.full(len(links), 0.3)).tolist(), strict=True)),
        "mutual": {
            "near": [[[(j, int(row[j])) for j in np.flatnonzero(row)] for row in table] for table in parts],
            "prices": (rng.random((views, experts)) ** rng.integers(1, 9)).tolist(),
        },
        "any_copies": True if instance.placement.draws_evenly else None,
    }
    checked = recomputed(instance, in_order(instance), traffic, **claims)
    assert Fraction(checked.layers[0].bound) <= least
    assert "contradiction" not in {violation.rule for violation in checked.violations}
    too_high = recomputed(instance, in_order(instance), traffic, **claims, bound=float(least) * 1.001 + 1e-3)
    assert "bound" in {violation.rule for violation in too_high.violations}


def hand() -> tuple[Instance, Traffic]:
    """Two nodes of three GPUs, three tokens on each; half of the tokens choose {0, 1}, the others {2, 3}."""
    instance = tiny_instance(
        model={**_MODEL, "top_k": 2},
        cluster={"nodes": 2, "gpus_per_node": 3, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
        placement=_FREE,
        traffic={"kind": "trace", "tokens_per_gpu": 1.0},
    )
    topk = np.array([[[0, 1]], [[2, 3]]], dtype=np.uint8)
    load = np.ones((1, 4))
    return instance, Traffic((Recording("hand", load, np.array([2.0]), topk),), np.ones((2, 1)))


def test_a_case_known_by_hand() -> None:
    """Each pair on a node: 1.5 of the other node's 3 tokens come. On one node, all would come, or be drawn there."""
    instance, traffic = hand()
    layer = compile_problem(instance, traffic).layer(0)
    bound = companions_bound(layer, np.array([0, 0, 1, 1, 0, 1]), Deadline())
    assert bound.any_replicas
    assert bound.value == pytest.approx(1.5, rel=1e-9)
    assert BruteForce(instance, traffic).best_of_layer(0) == Fraction(3, 2)


def test_a_division_that_books_nothing_to_one_of_a_pair_may_leave_the_other_less_than_nothing() -> None:
    """Experts 0 and 2 pay for all that pairs save: their shares fall, those of 1 and 3 rise, and the sum stays."""
    instance, traffic = hand()
    links = recomputed(instance, in_order(instance), traffic).links
    # Without companions foreseen, everyone adds 0.75 and pairs save 0.75 each; both ways of division give 1.5.
    for prices in ([1.0, 0.0, 1.0, 0.0], [0.2, 0.2, 0.2, 0.2]):
        claims = {
            "proof": "mutual-companions",
            "weights": dict.fromkeys(links, 0.5),
            "mutual": {"near": [[[]] * 4], "prices": [prices]},
            "any_copies": True,
        }
        assert recomputed(instance, in_order(instance), traffic, **claims).layers[0].bound == pytest.approx(1.5)


@cache
def solved() -> tuple[Instance, Traffic, dict[str, Any]]:
    instance, traffic, _, _ = case("redundant slots", 1)
    placement = solve(instance, traffic, limits=Limits(time_s=240.0, work=0.1)).placement
    return instance, traffic, placement.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_a_plan_with_redundant_slots_states_a_bound_of_the_instance() -> None:
    instance, traffic, data = solved()
    record = data["layers"][0]
    assert record["proof"] == "mutual-companions"
    assert record["any_copies"] is True
    assert 0 < record["bound"] <= float(case("redundant slots", 1)[3])
    assert data["replicas"]["bound_covers_choice_of_copies"] is True
    checked = verify(instance, Placement.model_validate(data), traffic)
    assert checked.ok
    assert checked.layers[0].bound == pytest.approx(record["bound"], rel=1e-9)
    assert checked.layers[0].bound_given_replicas is None


MUTATIONS: dict[str, tuple[str, Any, list[str]]] = {
    "nothing": ("mutual", None, ["proof"]),
    "no weights": ("weights", None, ["weights"]),
    "an expert short": ("mutual.prices", [[0.0] * 3], ["proof"]),
    "a view too many": ("mutual.near", [[[]] * 4] * 2, ["proof"]),
    "an expert that is none": ("mutual.near", [[[[4, 1]], [], [], []]], ["proof"]),
    "a pair the wrong way round": ("mutual.near", [[[], [[0, 1]], [], []]], ["proof"]),
    "more than a whole companion": ("mutual.near", [[[[1, 65]], [], [], []]], ["proof"]),
    "less than none": ("mutual.near", [[[[1, -1]], [], [], []]], ["proof"]),
    "a price beyond all tokens": ("mutual.prices", [[0.0, 0.0, 0.0, 1.5]], ["proof"]),
    "more than it proves": ("bound", None, ["bound"]),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_a_record_that_lacks_something_or_states_too_much_is_reported(what: str) -> None:
    instance, traffic, data = solved()
    path, value, rules = MUTATIONS[what]
    changed = deepcopy(data)
    *outer, last = path.split(".")
    place = changed["layers"][0]
    for key in outer:
        place = place[key]
    place[last] = place[last] * 1.001 if path == "bound" else value
    assert rules_of(instance, changed, traffic) == rules


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 100_000), rows=st.integers(1, 5))
def test_an_assignment_to_slots_costs_what_the_cheapest_does(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    prices, slots = rng.uniform(-5, 5, (rows, 3)), rng.integers(1, 4, 3)
    columns = np.repeat(np.arange(3), slots)
    ways = (list(one) for one in combinations(range(len(columns)), rows)) if rows <= len(columns) else iter(())
    least = min((_cheapest(prices[:, columns[way]]) for way in ways), default=float(prices.min(axis=1).sum()))
    assert assign_to_slots(prices, slots) == pytest.approx(least)


def _cheapest(prices: Floats) -> float:
    rows = list(range(len(prices)))
    return min(
        sum(prices[row, column] for row, column in zip(rows, order, strict=True)) for order in permutations(rows)
    )


def test_it_proves_nothing_where_nodes_use_replicas_unlike_each_other() -> None:
    instance = solved()[0]
    own = instance.placement.model_copy(update={"replica_routing": "vllm-ascend"})
    (found,) = check_proof_fits(instance.model_copy(update={"placement": own}), "mutual-companions", 0, "proof")
    assert "vllm-ascend" in found.message
    assert not list(check_proof_fits(instance, "mutual-companions", 0, "proof"))
