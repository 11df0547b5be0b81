"""A naive second opinion on loads and bounds, and what must not change them."""

from __future__ import annotations

import itertools
from typing import Any

import networkx as nx
import numpy as np
import pytest
from builders import (
    MESH,
    VARIANTS,
    in_order,
    proved,
    recomputed,
    tiny_instance,
    tiny_traffic,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.fabric.graph import build_fabric
from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic


def naive_costs(instance: Instance, traffic: Traffic, row: int, replicas: list[int]) -> np.ndarray:
    """c[i, n, k] of docs/bounds.md by nested loops over everything, with routes listed one by one."""
    graph = build_fabric(instance)
    links = list(graph.edges)
    nodes = instance.cluster.nodes
    items = [(expert, replica) for expert, count in enumerate(replicas) for replica in range(count)]
    c = np.zeros((len(items), nodes, len(links)))
    starting = instance.traffic.tokens_per_gpu * instance.cluster.gpus_per_node
    each = instance.cluster.nvlink_domain_nodes or 1
    for s, n in itertools.permutations(range(nodes), 2):
        if s // each == n // each:
            continue  # by NVLink
        routes = list(nx.all_shortest_paths(graph, f"node{s}", f"node{n}", weight="length"))
        for i, (expert, replica) in enumerate(items):
            if instance.placement.replica_routing == "even":
                part = 1 / replicas[expert]
            else:
                in_group = (
                    replica * nodes // instance.parallelism.dp <= s < (replica + 1) * nodes // instance.parallelism.dp
                )
                part = 1.0 if in_group else 0.0
            tokens = 0.0
            for f, recording in enumerate(traffic.recordings):
                tokens += starting * traffic.mix[s, f] * recording.load[row, expert] / recording.tokens[row] * part
            for route in routes:
                for tail, head in itertools.pairwise(route):
                    scale = 1.0
                    if instance.objective.metric == "time":
                        scale = instance.cluster.fabric.node_gb_per_s / graph.edges[tail, head]["bandwidth"]
                    c[i, n, links.index((tail, head))] += tokens * scale / len(routes)
    return c


def node_capacity(instance: Instance) -> list[int]:
    cluster, failed = instance.cluster, instance.placement.failed_gpus
    working = [cluster.gpus_per_node] * cluster.nodes
    for gpu in failed:
        working[gpu // cluster.gpus_per_node] -= 1
    slots, tp = instance.placement.slots_per_gpu, instance.parallelism.expert_tp
    return [count * slots // tp if count >= tp else 0 for count in working]


def all_assignments(items: int, capacity: list[int]) -> np.ndarray:
    """Every way to put items on nodes: [ways, items]."""
    ways = np.array(list(itertools.product(range(len(capacity)), repeat=items)))
    counts = np.stack([(ways == node).sum(axis=1) for node in range(len(capacity))], axis=1)
    return ways[(counts <= capacity).all(axis=1)]


@pytest.mark.parametrize("metric", ["time", "tokens"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loads_equal_the_naive_ones(variant: str, metric: str) -> None:
    instance = tiny_instance(**{**VARIANTS[variant], "objective": {"metric": metric}})
    traffic = tiny_traffic(instance, seed=5)
    gpu = in_order(instance)
    found = recomputed(instance, gpu, traffic)
    graph = build_fabric(instance)
    assert found.links == tuple(f"{tail}->{head}" for tail, head in graph.edges)
    for row in range(2):
        c = naive_costs(instance, traffic, row, [len(replicas) for replicas in gpu[row]])
        first = [one[0] if isinstance(one, list) else one for replicas in gpu[row] for one in replicas]
        nodes = [gpu_id // instance.cluster.gpus_per_node for gpu_id in first]
        expected = c[np.arange(len(nodes)), nodes].sum(axis=0)
        np.testing.assert_allclose(found.cost[row], expected, rtol=1e-12, atol=1e-9)
        assert found.layers[row].z == pytest.approx(expected.max(), rel=1e-12)


BRUTE: dict[str, dict[str, Any]] = {
    # At most 5 items on 4 nodes: all assignments can be tried. Some fill every slot (companions matter), some do not.
    "full tree": {"cluster": {"gpus_per_node": 1}, "parallelism": {"dp": 1}},
    "roomy tree": {"model": {"experts": 5}, "parallelism": {"dp": 1}},
    "full mesh, two slots": {
        "model": {"experts": 6},
        "cluster": {"nodes": 3, "gpus_per_node": 1, "fabric": MESH},
        "parallelism": {"dp": 1},
        "placement": {"slots_per_gpu": 2},
    },
    "groups": {"model": {"experts": 2}, "cluster": {"gpus_per_node": 1}},
    "even": {
        "model": {"experts": 3},
        "cluster": {"nodes": 3, "fabric": MESH},
        "placement": {"replica_routing": "even", "replicas": {"redundant_slots": 2}},
    },
    "failed": {
        "model": {"experts": 5},
        "cluster": {"nodes": 3, "fabric": MESH},
        "parallelism": {"dp": 1},
        "placement": {"failed_gpus": [1]},
    },
    "a whole node failed": {
        "cluster": {"nodes": 3, "fabric": MESH},
        "parallelism": {"dp": 1},
        "placement": {"failed_gpus": [0, 1]},
    },
    "sharded": {
        "model": {"experts": 4},
        "cluster": {"nodes": 2, "gpus_per_node": 5, "fabric": MESH},
        "parallelism": {"dp": 1, "expert_tp": 2},
    },
}


def naive_floor(c: np.ndarray, capacity: list[int], item: int, node: int) -> float:
    """floor[i, n] of docs/bounds.md, word by word."""
    items, _, links = c.shape
    least = max(0, items - sum(capacity[other] for other in range(len(capacity)) if other != node))
    floor = 0.0
    for k in range(links):
        others = sorted(c[j, node, k] for j in range(items) if j != item)
        floor = max(floor, c[item, node, k] + sum(others[: max(0, least - 1)]))
    return floor


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(sorted(BRUTE)),
    seed=st.integers(0, 10_000),
    sparse=st.booleans(),
    level=st.floats(0.3, 1.3),
)
def test_bounds_equal_the_naive_ones_and_never_exceed_the_best(
    variant: str, seed: int, sparse: bool, level: float
) -> None:
    instance = tiny_instance(**BRUTE[variant])
    traffic = tiny_traffic(instance, seed)
    gpu = in_order(instance)
    replicas = [len(row) for row in gpu[0]]
    c = naive_costs(instance, traffic, 0, replicas)
    capacity = node_capacity(instance)
    items, nodes, links = c.shape
    ways = all_assignments(items, capacity)
    best = float(np.sum([c[i, ways[:, i]] for i in range(items)], axis=0).max(axis=1).min())

    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(links, 0.1 if sparse else 1.0))
    price = c @ weights
    names = [f"{tail}->{head}" for tail, head in build_fabric(instance).edges]
    stated = dict(zip(names, weights.tolist(), strict=True))
    weighed = np.sum([price[i, ways[:, i]] for i in range(items)], axis=0)

    def bound(**claims: Any) -> float:
        return proved(recomputed(instance, gpu, traffic, **claims).layers[0])

    dual = bound(proof="dual", weights=stated)
    assert dual == pytest.approx(weighed.min(), rel=1e-9)
    assert dual <= best * (1 + 1e-9)

    floors = np.array([[naive_floor(c, capacity, i, n) for n in range(nodes)] for i in range(items)])
    holders = [n for n in range(nodes) if capacity[n]]
    owner = [(expert, replica) for expert, count in enumerate(replicas) for replica in range(count)]
    for i, hot in enumerate(owner):
        derived = bound(proof="hot-experts", hot=hot)
        assert derived == pytest.approx(floors[i, holders].min(), rel=1e-9)
        assert derived <= best * (1 + 1e-9)

    threshold = best * level
    allowed = np.all([floors[i, ways[:, i]] < threshold for i in range(items)], axis=0)
    expected = min(threshold, weighed[allowed].min(initial=np.inf))
    derived = bound(proof="threshold", weights=stated, threshold=threshold)
    assert derived == pytest.approx(expected, rel=1e-8)
    assert derived <= best * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_gpus_of_a_node_are_interchangeable(seed: int) -> None:
    instance = tiny_instance(cluster={"gpus_per_node": 3})
    traffic = tiny_traffic(instance, seed)
    rng = np.random.default_rng(seed)
    other = [int(gpu) for node in range(4) for gpu in rng.permutation(3) + 3 * node]
    gpu = in_order(instance)
    moved = [[[other[gpu_id] for gpu_id in replicas] for replicas in row] for row in gpu]
    before, after = recomputed(instance, gpu, traffic), recomputed(instance, moved, traffic)
    np.testing.assert_allclose(after.load, before.load, rtol=1e-12)
    assert before.layers == after.layers


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100))
def test_loads_grow_with_tokens(seed: int, factor: float) -> None:
    instance = tiny_instance()
    more = tiny_instance(traffic={"tokens_per_gpu": 100.0 * factor})
    traffic, gpu = tiny_traffic(instance, seed), in_order(instance)
    claims: dict[str, Any] = {"proof": "hot-experts", "hot": (1, 1)}
    one, scaled = recomputed(instance, gpu, traffic, **claims), recomputed(more, gpu, traffic, **claims)
    np.testing.assert_allclose(scaled.load, factor * one.load, rtol=1e-9)
    np.testing.assert_allclose(scaled.worst_pair, factor * one.worst_pair, rtol=1e-9)
    assert scaled.total_bound == pytest.approx(factor * one.total_bound)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(4)))
def test_nodes_of_a_mesh_are_interchangeable(seed: int, order: list[int]) -> None:
    instance = tiny_instance(cluster={"fabric": MESH}, placement={"replica_routing": "even"})
    traffic, gpu = tiny_traffic(instance, seed), in_order(instance)
    mix = np.empty_like(traffic.mix)
    mix[order] = traffic.mix
    moved = [[[2 * order[gpu_id // 2] + gpu_id % 2 for gpu_id in replicas] for replicas in row] for row in gpu]
    before, after = recomputed(instance, gpu, traffic), recomputed(instance, moved, Traffic(traffic.recordings, mix))
    assert [check.z for check in after.layers] == pytest.approx([check.z for check in before.layers])
    np.testing.assert_allclose(after.worst_pair, before.worst_pair, rtol=1e-12)
