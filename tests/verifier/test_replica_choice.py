"""Rules of replica choice: every token, rank and draw by itself, in plain Python, against what is computed at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import DRAGONFLY, MESH, placement_data, tiny_instance, tiny_tokens, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_by_rule import Tokens, scattered

from moe_placer import evaluate, make_traffic
from moe_placer.errors import InputError, UsageError
from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.verifier.loads import read_network

RULES = ("nearest", "sglang-static", "sglang-dynamic", "vllm-hash", "vllm-ascend", "trtllm-round-robin")
FABRICS: dict[str, dict[str, Any]] = {"tree": {}, "mesh": {"fabric": MESH}, "dragonfly": {"fabric": DRAGONFLY}}
UNITS = ("per-expert", "per-gpu", "per-node")


def served(unit: str = "per-expert", fabric: str = "tree", tp: int = 1, **more: Any) -> Instance:
    """5 experts and 3 more replicas on 4 nodes of 2 GPUs with a slot each, 2 where a unit is once per GPU."""
    slots = {"slots_per_gpu": 2 if unit == "per-gpu" else 1}
    nics = {"nics": more.pop("nics")} if "nics" in more else {}
    return tiny_instance(
        model={"experts": 5},
        cluster={"nodes": 4, "gpus_per_node": 2, **FABRICS[fabric], **nics},
        parallelism={"dp": 1, "attention_tp": tp},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 3}, "dispatch": unit, **slots},
        traffic={"kind": "trace", "tokens_per_gpu": 7.0, **more},
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("unit", UNITS)
@given(seed=st.integers(0, 10_000), fabric=st.sampled_from(sorted(FABRICS)), tp=st.sampled_from([1, 2]))
@settings(max_examples=3, deadline=None)
def test_every_token_by_itself(rule: str, unit: str, seed: int, fabric: str, tp: int) -> None:
    instance = served(unit, fabric, tp)
    traffic = tiny_tokens(instance, seed, (6, 9))
    gpu = scattered(instance, seed)
    placement = Placement.model_validate(placement_data(instance, gpu, traffic, []))
    flows, reference = find_flows(instance, placement, traffic, rule), Tokens(instance, gpu, traffic, rule)
    for row in range(len(instance.moe_layers)):
        between, tokens = reference.counted(row, unit)
        np.testing.assert_allclose(flows.between[row], between, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(flows.gpu[row], tokens, rtol=1e-9, atol=1e-9)


def on_nics(reference: Tokens, row: int, unit: str, receive: str, each: int) -> np.ndarray:
    """Tokens that each NIC sends and receives [2, nodes, NICs of a node], one token after the other."""
    size, nodes = reference.instance.cluster.gpus_per_node, reference.instance.cluster.nodes
    uses = [[nic for nic in range(each) if nic * size // each == q or q * each // size == nic] for q in range(size)]
    found = np.zeros((2, nodes, each))
    for weight, rank, gpus in reference.outcomes(row):
        landed = {"per-expert": gpus, "per-gpu": list(set(gpus))}.get(
            unit, [n * size for n in {g // size for g in gpus}]
        )
        for gpu in landed:
            if gpu // size == rank // size:
                continue
            arrives = uses[gpu % size if receive == "destination-gpu" else rank % size]
            for side, node, nics in ((0, rank // size, uses[rank % size]), (1, gpu // size, arrives)):
                found[side, node, nics] += weight / len(nics)
    return found


@pytest.mark.parametrize(("unit", "receive"), [(u, "source-rail") for u in UNITS] + [(UNITS[0], "destination-gpu")])
@given(seed=st.integers(0, 10_000), rule=st.sampled_from(RULES), each=st.sampled_from([1, 2, 4]))
@settings(max_examples=2, deadline=None)
def test_every_nic_by_its_own_ranks(unit: str, receive: str, seed: int, rule: str, each: int) -> None:
    instance = served(unit, "tree", 2, nics={"per_node": each, "gb_per_s": 400.0 / each, "receive": receive})
    traffic = tiny_tokens(instance, seed, (6, 9))
    gpu = scattered(instance, seed)
    placement = Placement.model_validate(placement_data(instance, gpu, traffic, []))
    load = find_flows(instance, placement, traffic, rule).load(read_network(instance))
    reference = Tokens(instance, gpu, traffic, rule)
    for row in range(len(instance.moe_layers)):
        expected = on_nics(reference, row, unit, receive, each)
        np.testing.assert_allclose(load[row, -expected.size :], expected.ravel(), rtol=1e-9, atol=1e-9)


def test_a_rank_alone_sends_by_its_own_nic() -> None:
    """Replicas on GPUs 0 and 2 of 2 x 2: under vllm-ascend only GPU 1 sends to the other node, and GPU 2 back."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": 2, "top_k": 1},
        cluster={
            "nodes": 2,
            "gpus_per_node": 2,
            "fabric": {"nodes_per_leaf": 2},
            "nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "source-rail"},
        },
        parallelism={"dp": 1},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 1}},
        traffic={"tokens_per_gpu": 100},
    )
    traffic = make_traffic(instance, topk=[np.zeros((1, 1, 1), dtype=int)])
    placement = Placement.model_validate(placement_data(instance, [[[0, 2], [3]]], traffic, []))
    load = find_flows(instance, placement, traffic, "vllm-ascend").load(read_network(instance))
    assert load[0, -8:].tolist() == [0, 100, 100, 0, 100, 0, 0, 100]
    found = evaluate(instance, placement, traffic, routing="vllm-ascend").placement
    assert (found.total_z, found.nic_z) == (200, 200)


def test_round_robin_is_even_and_no_rule_beats_the_best_split() -> None:
    instance = served()
    for seed in range(3):
        traffic = tiny_tokens(instance, seed)
        gpu = scattered(instance, seed)
        placement = Placement.model_validate(placement_data(instance, gpu, traffic, []))
        even = find_flows(instance, placement, traffic)
        np.testing.assert_allclose(find_flows(instance, placement, traffic, "trtllm-round-robin").sent, even.sent)
        network = read_network(instance)
        worst = {}
        for rule in (None, *RULES, "optimal"):
            flows = find_flows(instance, placement, traffic, rule)
            worst[rule] = (flows.load(network) * network.scale).max(axis=1)
            np.testing.assert_allclose(flows.gpu.sum(), even.gpu.sum())
        assert all((worst["optimal"] <= own * (1 + 1e-7)).all() for own in worst.values())


def test_the_best_split_by_hand() -> None:
    """Expert 0 is on both nodes, expert 1 on node 1: only what node 0 has for expert 1 must travel."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": 2},
        cluster={"nodes": 2, "gpus_per_node": 2, "fabric": {"nodes_per_leaf": 2}},
        parallelism={"dp": 1},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 1}},
    )
    traffic = tiny_traffic(instance, 0)
    placement = Placement.model_validate(placement_data(instance, [[[0, 2], [3]]], traffic, []))
    flows = find_flows(instance, placement, traffic, "optimal")
    choices = traffic.mix @ np.stack([r.load[0] / r.tokens[0] for r in traffic.recordings])
    np.testing.assert_allclose(flows.between[0], [[0, 200 * choices[0, 1]], [0, 0]], atol=1e-6)


def test_evaluate_knows_the_rules() -> None:
    instance = served()
    traffic = tiny_tokens(instance, 5)
    placement = Placement.model_validate(placement_data(instance, scattered(instance, 5), traffic, []))
    found = evaluate(instance, placement, traffic, routing="sglang-dynamic")
    assert (found.routing, found.same_instance) == ("sglang-dynamic", False)
    assert found.bound is not None
    assert found.bound <= found.placement.total_z
    apart = evaluate(instance, placement, traffic, routing="sglang-dynamic", dispatch="per-node")
    assert (apart.bound, apart.best_split) == (None, None)  # counted, not solved for
    assert found.best_split is not None
    assert found.best_split.total_z <= found.placement.total_z * (1 + 1e-7)
    uniform = evaluate(instance, placement, traffic, routing="trtllm-round-robin")
    assert uniform.bound == evaluate(instance, placement, traffic, routing="even").bound
    with pytest.raises(UsageError, match="leave out the step"):
        evaluate(instance, placement, traffic, routing="nearest", dispatch="per-node", step=True)


@pytest.mark.parametrize(
    ("rule", "changes", "says"),
    [
        ("fastest", {}, "one of group, even, nearest, sglang-static"),
        ("vllm-ascend", {"placement": {"failed_gpus": [1], "slots_per_gpu": 2}}, "a failed GPU has none"),
        ("nearest", {"parallelism": {"dp": 1, "expert_tp": 2}}, "expert_tp: 1"),
        ("vllm-hash", {"traffic": {"tokens_per_gpu": 1.5}}, "whole tokens"),
        ("optimal", {"placement": {"dispatch": "per-node"}}, "dispatch: per-expert"),
    ],
)
def test_refused_combinations_say_why(rule: str, changes: dict[str, Any], says: str) -> None:
    instance = tiny_instance(**changes)
    traffic = (tiny_tokens if instance.placement.counts_tokens_once else tiny_traffic)(instance, 0)
    shards = instance.parallelism.expert_tp > 1
    gpu = [[[[2 * e, 2 * e + 1]] if shards else [2 * e] for e in range(4)]] * 2
    placement = Placement.model_validate(placement_data(instance, gpu, traffic, []))
    with pytest.raises(InputError, match=says):
        evaluate(instance, placement, traffic, routing=rule)
