"""Surviving the failure of a GPU, a node or a leaf: what is refused, what is planned, and what the verifier says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import honest, in_order, tiny_instance, tiny_tokens, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.cli.describe import describe
from moe_placer.errors import InfeasibleError, InputError
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import compile_problem
from moe_placer.replan.replan import replan
from moe_placer.search.moves import Moves, repair
from moe_placer.solve.solve import solve
from moe_placer.verifier import verify

EVEN = {"replica_routing": "even"}
QUICK = Limits(time_s=60.0, work=0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"parallelism": {"dp": 1}, "placement": {"survives": "gpu"}}, "parallelism.dp of 2 or more"),
        ({"placement": {**EVEN, "replicas": {"redundant_slots": 3}, "survives": "gpu"}}, "at least 4 in placement"),
        ({"placement": {**EVEN, "replicas": {"redundant_slots_in_all": 7}, "survives": "gpu"}}, "at least 8 in"),
        ({"cluster": {"fabric": {"kind": "full-mesh"}}, "placement": {"survives": "leaf"}}, "kind fat-tree"),
        ({"cluster": {"fabric": {"nodes_per_leaf": 4}}, "placement": {"survives": "leaf"}}, "kind fat-tree"),
        ({"placement": {"survives": "gpu", "replicas_apart": "none"}}, "replicas_apart: gpu or node"),
    ],
)
def test_what_cannot_survive_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        tiny_instance(**changes)


def test_by_hand_the_verifier_names_what_would_be_lost() -> None:
    """Both replicas of expert 0 on one node of two GPUs; of expert 1 on one leaf of two nodes."""
    gpu = in_order(tiny_instance())
    gpu[0] = [[0, 1], [2, 4], [3, 5], [6, 7]]
    gpu[0][1], gpu[0][2] = [5, 7], [2, 4]
    gpu[0][3] = [3, 6]
    expected = {"none": [], "gpu": [], "node": [0], "leaf": [0, 1]}
    for kind, experts in expected.items():
        instance = tiny_instance(placement={**EVEN, "survives": kind})
        traffic = tiny_traffic(instance)
        found = verify(instance, Placement.model_validate(honest(instance, traffic, gpu)), traffic)
        named = [violation for violation in found.violations if violation.rule == "survives"]
        assert [violation.expert for violation in named] == experts
        assert [str(violation) for violation in named if "replicas are on" not in str(violation)] == []


def test_the_rule_is_part_of_the_instance_only_where_it_is_asked() -> None:
    assert tiny_instance(placement={"survives": "none"}).sha256 == tiny_instance().sha256
    assert tiny_instance(placement={"survives": "node"}).sha256 != tiny_instance().sha256


def test_too_few_slots_outside_of_a_leaf() -> None:
    """3 nodes on leaf 0, one on leaf 1: outside of leaf 0 there are 2 slots, and 4 experts need one each."""
    instance = tiny_instance(cluster={"fabric": {"nodes_per_leaf": 3}}, placement={**EVEN, "survives": "leaf"})
    with pytest.raises(InfeasibleError, match="outside of leaf 0 there are slots for 2 replicas"):
        solve(instance, tiny_traffic(instance))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["node", "leaf"]))
def test_repairs_and_trades_keep_experts_alive(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    placement = {**EVEN, "replicas": {"redundant_slots": 5}, "slots_per_gpu": 2, "survives": kind}
    instance = tiny_instance(cluster={"nodes": 6}, parallelism={"dp": 1}, placement=placement)
    layer = compile_problem(instance, tiny_traffic(instance, seed)).layer(0)
    assert (np.bincount(layer.expert) >= 2).all()
    node = repair(layer, rng.integers(0, 6, layer.items), rng)
    assert node is not None
    assert layer.valid(node)
    moves = Moves(layer, node)
    for _ in range(20):
        moves.random_trade(int(rng.integers(layer.items)), rng)
        assert not layer.gathered(moves.node).any()
        own = [{int(layer.domain[n]) for n in moves.node[layer.expert == e]} for e in range(4)]  # type: ignore[index]
        assert min(map(len, own)) >= 2


CASES: dict[str, dict[str, Any]] = {
    "groups, leaf": {"placement": {"survives": "leaf"}},
    "budget, gpu": {"placement": {**EVEN, "replicas": {"redundant_slots": 4}, "survives": "gpu"}},
    "shared budget, node": {
        "placement": {**EVEN, "replicas": {"redundant_slots_in_all": 10}, "slots_per_gpu": 2, "survives": "node"}
    },
    "layer time": {
        "placement": {**EVEN, "replicas": {"redundant_slots": 6}, "slots_per_gpu": 2, "survives": "leaf"},
        "objective": {"minimise": "layer-time"},
    },
    "aggregate": {"placement": {"survives": "leaf"}, "objective": {"minimise": "aggregate"}},
    "experts' GPUs receive": {
        "cluster": {"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}},
        "placement": {"survives": "node"},
    },
    "sharded": {"cluster": {"nodes": 8}, "parallelism": {"expert_tp": 2}, "placement": {"survives": "node"}},
    "per node": {"placement": {"dispatch": "per-node", "survives": "leaf"}, "model": {"experts": 4}},
}


@pytest.mark.parametrize("case", CASES)
def test_plans_and_replans_survive_whatever_the_objective(case: str) -> None:
    """The solve ends in the verifier, which knows the rule from the definitions; so does the replan."""
    instance = tiny_instance(**CASES[case])
    once = instance.placement.dispatch != "per-expert"
    traffic = tiny_tokens(instance, 0) if once else tiny_traffic(instance, 0)
    solution = solve(instance, traffic, limits=QUICK)
    assert solution.verification.ok
    assert all(len(gpus) >= 2 for row in solution.placement.gpu for gpus in row)
    if once or instance.parallelism.expert_tp > 1 or instance.objective.minimise == "aggregate":
        return
    found = replan(instance, solution.placement, tiny_traffic(instance, 1), limits=QUICK)
    assert found.verification is not None
    assert found.verification.ok


def test_inspect_says_what_second_replicas_take() -> None:
    """8 experts of 8,192 bytes in two layers, on 8 GPUs."""
    d = describe(tiny_instance(placement={"survives": "node"}), None)
    assert d.second_replica_gb == pytest.approx(2 * 4 * 8192 / 8 / 1e9)
    assert "when any node fails" in d.to_text()
    assert "Survival" not in describe(tiny_instance(), None).to_text()
