"""Routes: by hand, conserved, and the same as listing all shortest paths."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from builders import MESH, tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.fabric import Routes, build_fabric, compile_routes, link_name


def routes_of(**changes: object) -> Routes:
    instance = tiny_instance(**changes)
    return compile_routes(build_fabric(instance), instance.cluster.nodes)


def share(routes: Routes, link: str, source: int, target: int) -> float:
    nodes = len(routes.hops)
    return float(routes.shares.toarray()[routes.links.index(link), source * nodes + target])


def test_fat_tree_by_hand() -> None:
    # Nodes 0, 1 on leaf 0, nodes 2, 3 on leaf 1, two spines; 2:1 oversubscribed:
    # 2 * 400 / 2 / 2 = 200 GB/s a spine link.
    routes = routes_of()
    assert share(routes, "node0->leaf0", 0, 1) == 1.0
    assert share(routes, "leaf0->spine0", 0, 1) == 0.0
    assert share(routes, "leaf0->spine1", 0, 2) == 0.5
    assert share(routes, "spine1->leaf1", 0, 2) == 0.5
    assert share(routes, "leaf1->node3", 1, 3) == 1.0
    assert routes.hops[0].tolist() == [0, 2, 4, 4]
    bandwidth = dict(zip(routes.links, routes.bandwidth, strict=True))
    assert bandwidth["node0->leaf0"] == 400.0
    assert bandwidth["leaf0->spine0"] == bandwidth["spine0->leaf0"] == 200.0
    assert len(routes.links) == 2 * (4 + 4)


def test_full_mesh_by_hand() -> None:
    routes = routes_of(cluster={"fabric": MESH})
    assert len(routes.links) == 12
    assert share(routes, "node1->node2", 1, 2) == 1.0
    assert routes.shares.sum() == 12


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cluster": {"fabric": MESH}},
        {"cluster": {"nodes": 5}, "parallelism": {"dp": 1}},
        {"cluster": {"fabric": {"nodes_per_leaf": 4}}},
        {"cluster": {"nodes": 2, "fabric": {"nodes_per_leaf": 1, "spines": 3}}},
    ],
)
def test_what_is_sent_arrives(changes: dict[str, object]) -> None:
    routes = routes_of(**changes)
    nodes = len(routes.hops)
    shares = routes.shares.toarray().reshape(-1, nodes, nodes)
    for node in range(nodes):
        into = [k for k, name in enumerate(routes.links) if name.endswith(f"->node{node}")]
        expected = np.ones(nodes)
        expected[node] = 0.0
        assert shares[into][:, :, node].sum(axis=0) == pytest.approx(expected)


def test_one_node_has_no_network_to_cross() -> None:
    routes = routes_of(cluster={"nodes": 1, "fabric": MESH}, parallelism={"dp": 1})
    assert routes.links == ()
    assert routes.shares.shape == (0, 1)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_shares_are_those_of_all_shortest_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes, switches = 4, 3
    names = [f"node{i}" for i in range(nodes)] + [f"switch{i}" for i in range(switches)]
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    nx.add_cycle(graph, rng.permutation(names).tolist())
    for _ in range(8):
        one, other = rng.choice(names, 2, replace=False)
        graph.add_edge(one, other)
    nx.set_edge_attributes(graph, 100.0, "bandwidth")
    routes = compile_routes(graph, nodes)
    for s in range(nodes):
        for d in range(nodes):
            expected = dict.fromkeys(routes.links, 0.0)
            if s != d:
                paths = list(nx.all_shortest_paths(graph, f"node{s}", f"node{d}"))
                for path in paths:
                    for one, other in pairwise(path):
                        expected[link_name(one, other)] += 1 / len(paths)
            for link, value in expected.items():
                assert share(routes, link, s, d) == pytest.approx(value)


def test_a_fabric_that_is_not_connected_is_refused() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("node0", "node1", bandwidth=1.0)
    with pytest.raises(ValueError, match="does not connect"):
        compile_routes(graph, 2)
