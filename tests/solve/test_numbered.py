"""Solving under rules that number an expert's replicas by GPU, against counts token by token and brute force."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pytest
from builders import DRAGONFLY, MESH, tiny_instance
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moe_placer import Limits, evaluate, solve
from moe_placer.dag.flows import read_flows
from moe_placer.errors import InputError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.replan.replan import replan
from moe_placer.schedule.failure import after_failure
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.traffic.replica_shares import replica_shares
from moe_placer.verifier import verify
from moe_placer.verifier.loads import read_network

RULES = ("vllm-hash", "vllm-ascend")
FABRICS: dict[str, dict[str, Any]] = {"tree": {}, "mesh": {"fabric": MESH}, "dragonfly": {"fabric": DRAGONFLY}}
QUICK = Limits(work=0.2, gap=1e-6)


def served(
    rule: str, *, tp: int = 1, fabric: str = "tree", nodes: int = 4, extra: int = 3, **sections: Any
) -> Instance:
    """5 experts and more replicas on nodes of 2 GPUs with one slot each."""
    base: dict[str, Any] = {
        "model": {"experts": 5, "layers": 2, "dense_layers": [0]},
        "cluster": {"nodes": nodes, "gpus_per_node": 2, **FABRICS[fabric]},
        "parallelism": {"dp": 1, "attention_tp": tp},
        "placement": {"replica_routing": rule, "replicas": {"redundant_slots": extra}},
        "traffic": {"kind": "synthetic", "tokens_per_gpu": 7, "seed": 1},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return tiny_instance(**base)


def counted(instance: Instance, gpu: list[list[int]], traffic: Traffic) -> tuple[np.ndarray, np.ndarray]:
    """Send every token of every rank by itself: copies between nodes, and tokens on GPUs, of the first MoE layer."""
    size, tp = instance.cluster.gpus_per_node, instance.parallelism.attention_tp
    batch = int(instance.traffic.tokens_per_gpu)
    between, tokens = np.zeros((instance.cluster.nodes,) * 2), np.zeros(instance.gpus)
    for rank in range(instance.gpus):
        for file, recording in enumerate(traffic.recordings):
            assert recording.topk is not None
            share = traffic.mix[rank // size, file] / len(recording.topk)
            for expert, times in zip(*np.unique(recording.topk[:, 0], return_counts=True), strict=True):
                own = sorted(gpu[int(expert)])
                if not own:
                    continue
                for index in range(batch):
                    if instance.placement.replica_routing == "vllm-hash":
                        number = (index * 2654435769) & 0xFFFFFFFF
                    else:
                        number = rank if tp == 1 else rank % tp + rank // tp + int(expert)
                    to = own[number % len(own)]
                    tokens[to] += share * times
                    if to // size != rank // size:
                        between[rank // size, to // size] += share * times
    return between, tokens


def test_shares_known_by_hand() -> None:
    # Indices 0, 1, 2 hash to 0, 2654435769 (odd, 0 modulo 3) and 1013904242 (even, 2 modulo 3).
    by_hash = replica_shares(served("vllm-hash", traffic={"tokens_per_gpu": 3}))
    assert by_hash is not None
    expert, replica = np.array([0, 0, 1, 1, 1, 2]), np.array([0, 1, 0, 1, 2, 0])
    thirds = [3 * share for share in (2 / 3, 1 / 3, 2 / 3, 0, 1 / 3, 1)]
    assert (3 * by_hash.of(expert, replica)).round(12).tolist() == [pytest.approx(thirds)] * 4
    by_rank = replica_shares(served("vllm-ascend"))  # ranks 0 and 1 on node 0, 2 and 3 on node 1, ...
    assert by_rank is not None
    assert by_rank.of(expert, replica)[:, 2:5].tolist() == [[0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0]]
    with_tp = replica_shares(served("vllm-ascend", tp=2))  # rank % 2 + rank // 2 + expert: 1 and 2 on node 0, ...
    assert with_tp is not None
    assert with_tp.of(expert, replica)[:, 2:5].tolist() == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert replica_shares(served("even")) is None
    assert replica_shares(served("trtllm-round-robin")) is None


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10_000), fabric=st.sampled_from(sorted(FABRICS)), tp=st.sampled_from([1, 2]))
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
def test_what_is_solved_is_what_tokens_do_one_by_one(rule: str, seed: int, fabric: str, tp: int) -> None:
    instance = served(rule, tp=tp, fabric=fabric, traffic={"seed": seed})
    traffic = load_traffic(instance)
    found = solve(instance, traffic, limits=QUICK)
    gpu: list[list[int]] = [[shards[0] for shards in found.placement.shards(0, e)] for e in range(5)]
    between, tokens = counted(instance, gpu, traffic)
    network = read_network(instance)
    assert found.verification.load[0] == pytest.approx(network.load(between))
    assert found.verification.busiest_gpu[0] == pytest.approx(tokens.max())
    assert gpu == [sorted(own) for own in gpu]
    flow = read_flows(instance, found.placement, traffic).layer(0)  # what DAGs and steps count
    assert flow.load == pytest.approx(found.verification.load[0])
    named = evaluate(instance.with_serving("even"), found.placement, traffic, routing=rule)
    assert named.placement.total_z == pytest.approx(found.verification.total_z)
    # Whoever lists replicas in another order has the same placement.
    shuffled = tuple(tuple(reversed(own)) for own in found.placement.gpu[0])
    other = verify(instance, found.placement.model_copy(update={"gpu": (shuffled,)}), traffic)
    assert other.ok
    assert other.load == pytest.approx(found.verification.load)


def every_placement(instance: Instance, replicas: list[int]) -> set[tuple[tuple[int, ...], ...]]:
    """All ways to give experts with so many replicas GPUs of their own."""
    cuts = np.cumsum([0, *replicas]).tolist()
    return {
        tuple(tuple(sorted(order[a:b])) for a, b in pairwise(cuts))
        for order in permutations(range(instance.gpus), cuts[-1])
    }


def least_z(instance: Instance, traffic: Traffic, replicas: list[int]) -> float:
    """Cost of the busiest link of the best placement: that of each one, replica by replica as tokens take it."""
    network, best = read_network(instance), np.inf
    ways = sorted(every_placement(instance, replicas))
    sent = {  # by expert and its GPUs: what every node sends to which other
        (e, own): counted(instance, [list(own) if e == other else [] for other in range(len(replicas))], traffic)[0]
        for e, own in sorted({(e, own) for way in ways for e, own in enumerate(way)})
    }
    for way in ways:
        load = network.load(np.sum([sent[e, own] for e, own in enumerate(way)], axis=0))
        best = min(best, float((load * network.scale).max()))
    return best


@pytest.mark.parametrize("rule", RULES)
def test_no_placement_is_below_the_bound(rule: str) -> None:
    model = {"experts": 3, "layers": 1, "dense_layers": []}
    instance = served(rule, nodes=3, extra=2, model=model, traffic={"tokens_per_gpu": 5})
    traffic = load_traffic(instance)
    found = solve(instance, traffic, limits=QUICK)
    mine = [len(own) for own in found.placement.gpu[0]]
    check = found.verification.layers[0]
    if rule == "vllm-hash":  # its bound is for every choice of replicas
        best = min(least_z(instance, traffic, own) for own in ([1, 1, 3], [1, 3, 1], [3, 1, 1], mine))
        assert 0 < check.bound <= best * (1 + 1e-9)
    else:
        assert check.bound == 0
    best, given_replicas = least_z(instance, traffic, mine), check.bound_given_replicas or check.bound
    assert 0 < given_replicas <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= check.z <= 1.2 * best


def test_trtllm_is_even() -> None:
    even, trtllm = served("even"), served("trtllm-round-robin")
    one, other = (solve(own, limits=QUICK) for own in (even, trtllm))
    assert one.verification.total_z == other.verification.total_z
    assert one.verification.total_bound == other.verification.total_bound > 0


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"parallelism": {"expert_tp": 2}}, "ranks hold whole experts"),
    ({"placement": {"failed_gpus": [0]}}, "the rule counts ranks"),
    ({"placement": {"dispatch": "per-node"}}, "picked by one number"),
    ({"cluster": {"nics": {"per_node": 2, "gb_per_s": 200, "receive": "source-rail"}}}, "do not send alike"),
    ({"placement": {"pinned": [{"layer": 1, "expert": 0, "gpu": 0}]}}, "decides which number it has"),
    ({"placement": {"replicas": {"redundant_slots_in_all": 3}}}, "changes the shares of all"),
    ({"objective": {"minimise": "layer-time"}}, "minimise: layers"),
    ({"traffic": {"tokens_per_gpu": 7.5}}, "hashes the index"),
)


@pytest.mark.parametrize(("sections", "why"), REFUSED)
def test_what_is_refused_says_why(sections: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError) as caught:
        served("vllm-hash", **with_rule(sections))
    assert any(why in str(one.expected) for one in caught.value.mistakes)


def with_rule(sections: dict[str, Any]) -> dict[str, Any]:
    """Keep the rule and the budget where a section of its own says nothing of them."""
    placement = {"replica_routing": "vllm-hash", "replicas": {"redundant_slots": 3}}
    return {**sections, "placement": {**placement, **sections.get("placement", {})}}


def test_replan_and_failures_say_that_they_do_not_know_the_rule() -> None:
    instance = served("vllm-ascend")
    plan: Placement = solve(instance, solver="greedy", limits=QUICK).placement
    with pytest.raises(NothingFoundError, match="numbers replicas by GPU"):
        replan(instance, plan)
    with pytest.raises(UsageError, match="a failed GPU has none"):
        after_failure(instance, plan, [0])
