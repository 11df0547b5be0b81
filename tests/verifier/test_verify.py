"""The verifier: figures worked out by hand, good placements, and what a caller does wrong."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from builders import (
    MESH,
    ONE_LAYER,
    VARIANTS,
    honest,
    in_order,
    level_traffic,
    proved,
    recomputed,
    rules_of,
    tiny_instance,
    tiny_traffic,
)

from moe_placer.errors import InputError
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import verify


def two_nodes() -> tuple[Instance, Traffic]:
    """Two nodes of one GPU, two experts; of a node's 100 tokens, 75 choose expert 0 and 25 choose expert 1."""
    instance = tiny_instance(
        model={**ONE_LAYER, "experts": 2, "top_k": 1},
        cluster={"nodes": 2, "gpus_per_node": 1, "fabric": MESH},
        parallelism={"dp": 1},
    )
    return instance, level_traffic(instance, [[3, 1]], 4)


def test_two_nodes() -> None:
    instance, traffic = two_nodes()
    # Expert 0 on node 0: node 1 sends it 75 tokens; expert 1 on node 1: node 0 sends it 25.
    found = recomputed(instance, [[[0], [1]]], traffic)
    assert found.links == ("node0->node1", "node1->node0")
    np.testing.assert_allclose(found.load, [[25, 75]])
    np.testing.assert_allclose(found.cost, [[25, 75]])
    assert found.layers[0].worst_link == "node1->node0"
    assert found.worst_pair.tolist() == [75]
    assert (found.total_z, found.max_z, found.aggregate) == (75, 75, 75)


def test_bounds_of_two_nodes() -> None:
    instance, traffic = two_nodes()
    half = {"node0->node1": 0.5, "node1->node0": 0.5}
    one = {"node0->node1": 1.0}

    def bound(**claims: Any) -> float:
        return recomputed(instance, [[[0], [1]]], traffic, **claims).layers[0].bound

    # Either way round, the links carry 25 and 75: half of each is 50, and the first link alone may carry just 25.
    assert bound(proof="dual", weights=half) == pytest.approx(50)
    assert bound(proof="dual", weights=one) == pytest.approx(25)
    # Expert 0 is on some node, and the other node sends it 75; expert 1 likewise draws 25.
    assert bound(proof="hot-experts", hot=(0, 0)) == pytest.approx(75)
    assert bound(proof="hot-experts", hot=(1, 0)) == pytest.approx(25)
    # Below 60 expert 0 has nowhere to be, so 60 is proved; at 80 it does, and the weights prove what they prove.
    assert bound(proof="threshold", threshold=60.0, weights=half) == pytest.approx(60)
    assert bound(proof="threshold", threshold=80.0, weights=half) == pytest.approx(50)
    # A threshold exactly at a floor forbids it, whatever the rounding.
    assert bound(proof="threshold", threshold=75.0, weights=half) == pytest.approx(75)
    assert bound(proof="threshold", threshold=-3.0, weights=half) == 0
    assert bound(proof="solver") == 0


def test_companions_of_a_hot_expert() -> None:
    # Two nodes of two GPUs, all four slots taken: whoever holds expert 0 (70 of 100 tokens) holds one more, at least
    # the coldest (5). 200 tokens start on a node: 2 * (70 + 5) = 150.
    instance = tiny_instance(
        model={**ONE_LAYER, "top_k": 1},
        cluster={"nodes": 2, "fabric": MESH},
        parallelism={"dp": 1},
    )
    traffic = level_traffic(instance, [[70, 15, 10, 5]], 100)
    gpu = [[[0], [1], [2], [3]]]
    claims: dict[str, Any] = {"proof": "hot-experts"}
    assert recomputed(instance, gpu, traffic, hot=(0, 0), **claims).layers[0].bound == pytest.approx(150)
    # The coldest itself: with expert 2, 2 * (5 + 10) = 30.
    assert recomputed(instance, gpu, traffic, hot=(3, 0), **claims).layers[0].bound == pytest.approx(30)
    # With a GPU more on each node nobody needs a companion: 2 * 70 = 140.
    roomy = tiny_instance(
        model={**ONE_LAYER, "top_k": 1},
        cluster={"nodes": 2, "gpus_per_node": 3, "fabric": MESH},
        parallelism={"dp": 1},
        traffic={"tokens_per_gpu": 200 / 3},
    )
    assert recomputed(roomy, gpu, traffic, hot=(0, 0), **claims).layers[0].bound == pytest.approx(140)


def fat_tree(metric: str = "time") -> tuple[Instance, Traffic]:
    """Four nodes of one GPU, two leaves, two spines; of a node's 100 tokens, 40, 30, 20, 10 choose experts 0 to 3."""
    instance = tiny_instance(
        model={**ONE_LAYER, "top_k": 1},
        cluster={"gpus_per_node": 1},
        parallelism={"dp": 1},
        objective={"metric": metric},
    )
    return instance, level_traffic(instance, [[40, 30, 20, 10]], 100)


FAT_TREE_LOAD = {
    # Up: all 100 tokens of a node but those for its own expert.
    "node0->leaf0": 60.0,
    "node1->leaf0": 70.0,
    "node2->leaf1": 80.0,
    "node3->leaf1": 90.0,
    # Down: what three other nodes send to the node's expert.
    "leaf0->node0": 120.0,
    "leaf0->node1": 90.0,
    "leaf1->node2": 60.0,
    "leaf1->node3": 30.0,
    # Nodes 0 and 1 send 20 + 10 each to experts 2 and 3, half over each spine.
    "leaf0->spine0": 30.0,
    "leaf0->spine1": 30.0,
    "spine0->leaf1": 30.0,
    "spine1->leaf1": 30.0,
    # Nodes 2 and 3 send 40 + 30 each to experts 0 and 1.
    "leaf1->spine0": 70.0,
    "leaf1->spine1": 70.0,
    "spine0->leaf0": 70.0,
    "spine1->leaf0": 70.0,
}


def test_fat_tree() -> None:
    # A leaf takes 2 * 400 GB/s from its nodes; oversubscribed 2:1 over two spines, a spine link has 200 GB/s: scale 2.
    instance, traffic = fat_tree()
    found = recomputed(instance, [[[0], [1], [2], [3]]], traffic)
    assert dict(zip(found.links, found.load[0], strict=True)) == pytest.approx(FAT_TREE_LOAD)
    cost = {name: load * (2 if "spine" in name else 1) for name, load in FAT_TREE_LOAD.items()}
    assert dict(zip(found.links, found.cost[0], strict=True)) == pytest.approx(cost)
    assert found.layers[0].z == pytest.approx(140)
    assert found.layers[0].worst_link in {"leaf1->spine0", "leaf1->spine1", "spine0->leaf0", "spine1->leaf0"}
    assert found.worst_pair[0] == pytest.approx(40)


def test_tokens_metric_counts_every_link_alike() -> None:
    instance, traffic = fat_tree("tokens")
    found = recomputed(instance, [[[0], [1], [2], [3]]], traffic)
    np.testing.assert_array_equal(found.cost, found.load)
    assert (found.layers[0].z, found.layers[0].worst_link) == (pytest.approx(120), "leaf0->node0")


@pytest.mark.parametrize("name", ["leaf1->spine0", "leaf1->spine1", "spine0->leaf0", "spine1->leaf0"])
def test_any_of_several_worst_links_may_be_named(name: str) -> None:
    instance, traffic = fat_tree()
    data = honest(instance, traffic)
    data["layers"][0]["worst_link"] = name
    assert rules_of(instance, data, traffic) == []


def test_group_routing_uses_the_replica_of_the_source_group() -> None:
    # Two experts, two replicas each on four nodes: nodes 0, 1 use replicas 0 (on nodes 0 and 1), nodes 2, 3 use
    # replicas 1 (on nodes 3 and 2). Of 100 tokens 80 choose expert 0 and 20 expert 1.
    instance = tiny_instance(
        model={**ONE_LAYER, "experts": 2, "top_k": 1}, cluster={"gpus_per_node": 1, "fabric": MESH}
    )
    traffic = level_traffic(instance, [[4, 1]], 5)
    found = recomputed(instance, [[[0, 3], [1, 2]]], traffic)
    load = {name: tokens for name, tokens in zip(found.links, found.load[0], strict=True) if tokens}
    expected = {"node0->node1": 20, "node1->node0": 80, "node2->node3": 80, "node3->node2": 20}
    assert load == pytest.approx(expected)


def test_even_routing_spreads_over_all_replicas() -> None:
    # Expert 0 (90 of 100 tokens) has three replicas, on nodes 0, 1 and 2: 30 tokens to each; expert 1 is on node 3.
    instance = tiny_instance(
        model={**ONE_LAYER, "experts": 2, "top_k": 1},
        cluster={"gpus_per_node": 1, "fabric": MESH},
        placement={"replicas": {"redundant_slots": 2}, "replica_routing": "even"},
    )
    traffic = level_traffic(instance, [[9, 1]], 10)
    found = recomputed(instance, [[[0, 1, 2], [3]]], traffic)
    load = dict(zip(found.links, found.load[0], strict=True))
    assert load == pytest.approx({name: 10 if name.endswith("node3") else 30 for name in found.links})


def test_tokens_of_failed_gpus_still_start() -> None:
    whole = tiny_instance(cluster={"gpus_per_node": 3})
    failed = tiny_instance(cluster={"gpus_per_node": 3}, placement={"failed_gpus": [11]})
    traffic, gpu = tiny_traffic(whole), in_order(whole)
    np.testing.assert_array_equal(recomputed(whole, gpu, traffic).load, recomputed(failed, gpu, traffic).load)


def test_memory_by_hand() -> None:
    instance = tiny_instance(
        model={"dense_hidden_size": 48},
        parallelism={"attention_tp": 2},
        placement={"kv_cache_gb": 0.25, "failed_gpus": [7]},
    )
    # bf16, 2 bytes a value, over attention_tp 2: attention 3 layers * 4 * 64 * (4 * 16); one dense layer 2 * 64 * 48;
    # embeddings 2 * 1000 * 64.
    resident = (3 * 4 * 64 * 64 + 2 * 64 * 48 + 2 * 1000 * 64) * 2 / 2 + 0.25e9
    expert = 2 * 64 * 32 * 2
    gpu = [[[0, 1], [1, 0], [2], [3]], [[0], [1], [2], [3]]]
    expected = [resident + n * expert for n in (3, 3, 2, 2, 0, 0, 0)]
    np.testing.assert_allclose(recomputed(instance, gpu, tiny_traffic(instance)).memory, [*expected, 0])


def test_a_shard_takes_its_share_of_memory() -> None:
    instance = tiny_instance(parallelism={"dp": 1, "expert_tp": 2})
    found = recomputed(instance, in_order(instance), tiny_traffic(instance))
    # Resident: (3 * 4 * 64 * 64 + 2 * 64 * 64 + 2 * 1000 * 64) * 2 bytes; half an expert of each of two layers.
    np.testing.assert_allclose(found.memory, 370_688 + 2 * (2 * 64 * 32 * 2) / 2)


def test_aggregate_adds_layers_up_link_by_link() -> None:
    instance = tiny_instance(
        model={"experts": 2, "top_k": 1},
        cluster={"nodes": 2, "gpus_per_node": 1, "fabric": MESH},
        parallelism={"dp": 1},
    )
    traffic = level_traffic(instance, [[3, 1], [3, 1]], 4)
    # Expert 0 draws 75 tokens, expert 1 draws 25; they change places: every link carries 75 once and 25 once.
    found = recomputed(instance, [[[0], [1]], [[1], [0]]], traffic)
    assert (found.total_z, found.max_z, found.aggregate) == (150, 75, 100)


def test_single_node_has_no_links() -> None:
    cluster = {"nodes": 1, "gpus_per_node": 8, "fabric": MESH}
    instance = tiny_instance(cluster=cluster, parallelism={"dp": 1})
    traffic = tiny_traffic(instance)
    for proof in ("dual", "solver", "hot-experts", "threshold"):
        assert rules_of(instance, honest(instance, traffic, proof=proof), traffic) == []
    found = recomputed(instance, in_order(instance), traffic)
    assert (found.links, found.total_z, found.aggregate, found.worst_pair.tolist()) == ((), 0, 0, [0, 0])


def test_loads_are_recounted_from_tokens() -> None:
    instance = tiny_instance(model={**ONE_LAYER, "top_k": 1}, cluster={"gpus_per_node": 1}, parallelism={"dp": 1})
    topk = np.repeat([0, 1, 2, 3], [40, 30, 20, 10]).astype(np.uint8).reshape(100, 1, 1)
    lie = Recording("lie", np.ones((1, 4)), np.full(1, 7.0), topk)
    traffic = Traffic((lie,), np.ones((4, 1)))
    found = recomputed(instance, [[[0], [1], [2], [3]]], traffic)
    assert dict(zip(found.links, found.load[0], strict=True)) == pytest.approx(FAT_TREE_LOAD)


@pytest.mark.parametrize("proof", ["dual", "threshold", "hot-experts", "solver"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_good_placements_are_accepted(variant: str, proof: str) -> None:
    instance = tiny_instance(**VARIANTS[variant])
    traffic = tiny_traffic(instance)
    found = verify(instance, Placement.model_validate(honest(instance, traffic, proof=proof)), traffic)
    assert [str(violation) for violation in found.violations] == []
    assert found.ok
    assert found.total_z == pytest.approx(sum(check.z for check in found.layers))
    assert 0 < found.max_z <= found.total_z
    assert found.max_z <= found.aggregate <= found.total_z * (1 + 1e-12)
    assert found.total_bound <= found.total_z
    assert (sum(map(proved, found.layers)) > 0) == (proof != "solver")
    assert (found.total_bound > 0) == (proof != "solver" and "budget" not in variant)


def test_traffic_is_loaded_where_none_is_given() -> None:
    instance = tiny_instance(traffic={"kind": "synthetic", "seed": 3, "tokens_per_gpu": 100.0})
    assert verify(instance, Placement.model_validate(honest(instance, load_traffic(instance)))).ok


def test_traffic_of_another_instance_is_refused() -> None:
    instance = tiny_instance()
    placement = Placement.model_validate(honest(instance, tiny_traffic(instance)))
    topk = np.full((3, 2, 2), 4)
    good = tiny_traffic(instance)
    for traffic in (
        tiny_traffic(tiny_instance(cluster={"nodes": 2})),
        tiny_traffic(tiny_instance(model={"layers": 4})),
        tiny_traffic(tiny_instance(model={"experts": 5})),
        Traffic((), np.ones((4, 0))),
        Traffic((Recording("tokens", np.ones((2, 4)), np.ones(2), topk),), np.ones((4, 1))),
        Traffic((Recording("tokens", np.ones((2, 4)), np.ones(2), topk[:, :1]),), np.ones((4, 1))),
        Traffic((Recording("none", np.ones((2, 4)), np.zeros(2)),), np.ones((4, 1))),
        Traffic((Recording("below 0", -np.ones((2, 4)), np.ones(2)),), np.ones((4, 1))),
        Traffic((Recording("no number", np.full((2, 4), np.nan), np.ones(2)),), np.ones((4, 1))),
        Traffic((Recording("endless", np.ones((2, 4)), np.full(2, np.inf)),), np.ones((4, 1))),
        Traffic((Recording("plain", np.ones((2, 4)), np.ones(2)),), -np.ones((4, 1))),
        Traffic((Recording("plain", np.ones((2, 4)), np.ones(2)),), np.full((4, 1), np.inf)),
        Traffic(good.recordings, good.mix[:, :1]),
    ):
        with pytest.raises(InputError, match="traffic"):
            verify(instance, placement, traffic)


def large(nodes: int, layers: int, experts: int) -> tuple[Instance, Traffic]:
    instance = tiny_instance(
        model={"layers": layers, "dense_layers": [], "experts": experts, "top_k": 8},
        cluster={
            "nodes": nodes,
            "gpus_per_node": 8,
            "gpu": {"memory_gb": 64.0},
            "fabric": {"nodes_per_leaf": 4, "spines": 4},
        },
    )
    return instance, tiny_traffic(instance, recordings=4)


@pytest.mark.parametrize("proof", ["dual", "hot-experts", "threshold"])
def test_128_gpus_take_seconds(proof: str) -> None:
    instance, traffic = large(16, 58, 64)
    placement = Placement.model_validate(honest(instance, traffic, proof=proof))
    start = time.process_time()
    assert verify(instance, placement, traffic).ok
    assert time.process_time() - start < 3


@pytest.mark.slow
@pytest.mark.parametrize("proof", ["dual", "hot-experts", "threshold"])
def test_1024_gpus_take_less_than_a_minute(proof: str) -> None:
    instance, traffic = large(128, 61, 512)
    placement = Placement.model_validate(honest(instance, traffic, proof=proof))
    start = time.process_time()
    assert verify(instance, placement, traffic).ok
    assert time.process_time() - start < 60
