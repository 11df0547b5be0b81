"""Routes: by hand, conserved, and the same as listing all shortest paths."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest
from builders import DRAGONFLY, MESH, RAILS, THREE_LEVELS, assert_near, tiny_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError
from moe_placer.fabric import Routes, build_fabric, compile_routes, link_kind, link_name, node_routes
from moe_placer.verifier.loads import read_network


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


def test_links_to_parallel_spines_are_kept_once() -> None:
    routes = routes_of(cluster={"fabric": {"spines": 8}})
    up = [routes.kind[routes.links.index(f"leaf1->spine{spine}")] for spine in range(8)]
    assert set(up) == {up[0]}
    assert routes.kinds.shape[0] == 2 * (4 + 2)  # up from and down to every node and every leaf
    assert share(routes, "leaf1->spine7", 2, 0) == 1 / 8


def test_the_verifier_reads_links_to_parallel_spines_once() -> None:
    network = read_network(tiny_instance(cluster={"fabric": {"spines": 8}}))
    pairs, apart = 4 * 3, 4 * 2  # of nodes, and of those on two leaves
    assert len(network.link) == 2 * pairs + 2 * apart
    assert len(network.whole.link) == 2 * pairs + 2 * 8 * apart
    assert network.whole.whole is network.whole
    flow = np.random.default_rng(0).random((4, 4))
    assert network.load(flow).tolist() == network.whole.load(flow).tolist()
    assert network.longest == network.whole.longest == 2 + 2 * 8
    assert network.arrivals[0].tolist() == network.whole.arrivals[0].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cluster": {"fabric": MESH}},
        {"cluster": {"nodes": 5}, "parallelism": {"dp": 1}},
        {"cluster": {"fabric": {"nodes_per_leaf": 4}}},
        {"cluster": {"nodes": 2, "fabric": {"nodes_per_leaf": 1, "spines": 3}}},
        {"cluster": {"nodes": 6, "fabric": DRAGONFLY}},
        {"cluster": {"nodes": 6, "fabric": THREE_LEVELS}},
        {"cluster": {"nodes": 6, "fabric": RAILS}},
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


def dragonfly(nodes: int, **changes: object) -> dict[str, object]:
    return {"cluster": {"nodes": nodes, "fabric": {**DRAGONFLY, **changes}}, "parallelism": {"dp": 1}}


def test_dragonfly_by_hand() -> None:
    # Three groups of two routers; in each, port 0 (router 0) leads to the next group and port 1 to the one after.
    routes = routes_of(**dragonfly(6))
    between = {link for link in routes.links if "node" not in link}
    across = {"router0->router3", "router2->router5", "router1->router4"}
    local = {"router0->router1", "router2->router3", "router4->router5"}
    twins = {"->".join(reversed(link.split("->"))) for link in across | local}
    assert between == across | local | twins
    for link in ("node1->router1", "router1->router0", "router0->router3", "router3->router2", "router2->node2"):
        assert share(routes, link, 1, 2) == 1.0
    assert routes.hops[0].tolist() == [0, 3, 4, 3, 4, 5]
    bandwidth = dict(zip(routes.links, routes.bandwidth, strict=True))
    assert bandwidth["router0->router3"] == 100.0
    assert bandwidth["router0->router1"] == bandwidth["node0->router0"] == 400.0


def test_minimal_routes_cross_one_global_link_only() -> None:
    # Four groups: port 2 is at router 0 again, so two global links in a row lead from router 0 to router 4 by way of
    # router 2, in fewer hops than local, global (router 1 to router 5), local.
    routes = routes_of(**dragonfly(8))
    assert {"router0->router2", "router2->router4", "router1->router5"} <= set(routes.links)
    for link in ("router0->router1", "router1->router5", "router5->router4"):
        assert share(routes, link, 0, 4) == 1.0
    assert share(routes, "router0->router2", 0, 4) == 0.0
    assert routes.hops[0, 4] == 5


def test_parallel_global_links_share_the_traffic() -> None:
    # Two groups of three routers, two links: router 0 to router 3, router 1 to router 4. From router 2 both are as far.
    routes = routes_of(**dragonfly(6, routers_per_group=3, global_links=2))
    assert share(routes, "router0->router3", 2, 5) == share(routes, "router1->router4", 2, 5) == 0.5
    assert share(routes, "router0->router3", 0, 5) == 1.0
    assert routes.hops[2, 5] == 5


@given(
    nodes=st.integers(1, 20),
    nodes_per_router=st.integers(1, 3),
    routers_per_group=st.integers(1, 4),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_the_verifier_reads_the_same_dragonfly_from_its_definition(
    nodes: int, nodes_per_router: int, routers_per_group: int, data: st.DataObject
) -> None:
    parallel = data.draw(st.integers(1, routers_per_group))
    shape = {"nodes_per_router": nodes_per_router, "routers_per_group": routers_per_group, "global_links": parallel}
    instance = tiny_instance(**dragonfly(nodes, local_gb_per_s=200.0, **shape))
    routes, network = compile_routes(build_fabric(instance), nodes), read_network(instance).whole
    scale = dict(zip(routes.links, 400.0 / routes.bandwidth, strict=True))
    assert dict(zip(network.links, network.scale, strict=True)) == pytest.approx(scale)
    theirs = np.zeros((len(network.links), nodes, nodes))
    theirs[network.link, network.source, network.target] = network.share
    assert len(network.share) == np.count_nonzero(theirs)  # no two entries for one link and pair
    order = [network.links.index(link) for link in routes.links]
    assert_near(routes.shares.toarray().reshape(-1, nodes, nodes), theirs[order])


def test_links_between_groups_are_told_from_local_ones() -> None:
    graph = build_fabric(tiny_instance(**dragonfly(6)))
    assert link_kind(graph, "router0", "router1") == "router->router (local)"
    assert link_kind(graph, "router0", "router3") == "router->router (global)"
    assert link_kind(graph, "node0", "router0") == "node->router"


def test_more_global_links_than_routers_are_refused() -> None:
    with pytest.raises(InputError, match=r"cluster\.fabric\.global_links: found 3.*routers_per_group \(2\)"):
        tiny_instance(**dragonfly(6, global_links=3))


def test_three_levels_by_hand() -> None:
    # Leaves of one node, pods of two leaves and two spines, a core above each spine of all pods. 2:1 oversubscribed
    # leaves: 400 / 2 / 2 = 100 GB/s to a spine; a pod's 4 of these links, 1.5:1: 400 / 1.5 / 2 to a core.
    routes = routes_of(cluster={"nodes": 6, "fabric": THREE_LEVELS})
    bandwidth = dict(zip(routes.links, routes.bandwidth.tolist(), strict=True))
    assert bandwidth["node0->leaf0"] == 400.0
    assert bandwidth["leaf3->spine2"] == bandwidth["spine2->leaf3"] == 100.0
    assert bandwidth["spine3->core1"] == bandwidth["core1->spine5"] == pytest.approx(400 / 1.5 / 2)
    assert len(routes.links) == 2 * (6 + 6 * 2 + 3 * 2)
    assert "spine3->core0" not in bandwidth  # the second spine of a pod
    assert "leaf1->spine2" not in bandwidth  # of another pod
    assert share(routes, "leaf0->spine1", 0, 1) == share(routes, "spine1->leaf1", 0, 1) == 0.5
    assert share(routes, "spine0->core0", 0, 1) == 0.0
    for link in ("leaf0->spine1", "spine1->core1", "core1->spine3", "spine3->leaf2"):
        assert share(routes, link, 0, 2) == 0.5
    assert routes.hops[0].tolist() == [0, 4, 6, 6, 6, 6]


def test_pods_of_rails_by_hand() -> None:
    # Nodes of two GPUs: two rails of 200 GB/s, a leaf for each in every pod of two nodes; 2:1: 2 * 200 / 2 / 2 a spine.
    routes = routes_of(cluster={"fabric": RAILS})
    bandwidth = dict(zip(routes.links, routes.bandwidth.tolist(), strict=True))
    assert bandwidth["node3->leaf2"] == bandwidth["leaf3->node3"] == 200.0
    assert bandwidth["leaf3->spine1"] == bandwidth["spine0->leaf0"] == 100.0
    assert len(routes.links) == 2 * (4 * 2 + 4 * 2)
    assert share(routes, "node0->leaf1", 0, 1) == share(routes, "leaf1->node1", 0, 1) == 0.5
    assert share(routes, "leaf1->spine0", 0, 1) == 0.0  # nothing leaves a leaf inside a pod
    assert share(routes, "leaf1->spine0", 0, 2) == share(routes, "spine0->leaf3", 0, 2) == 0.25
    assert routes.hops[0].tolist() == [0, 2, 4, 4]
    nics = {"per_node": 1, "gb_per_s": 400.0, "receive": "source-rail"}
    assert "node3->leaf1" in routes_of(cluster={"fabric": RAILS, "nics": nics}).links  # as many rails as NICs
    assert "node0->leaf3" in routes_of(cluster={"fabric": {**RAILS, "rails": 4}}).links


def test_copies_cannot_cross_rails() -> None:
    nics = {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}
    with pytest.raises(InputError, match=r"destination-gpu.*source-rail or shared: with rail-pods"):
        tiny_instance(cluster={"fabric": RAILS, "nics": nics})
    with pytest.raises(InputError, match=r"cluster\.fabric\.rails: found 3, expected cluster\.nics\.per_node \(2\)"):
        tiny_instance(cluster={"fabric": {**RAILS, "rails": 3}, "nics": {**nics, "receive": "source-rail"}})


@given(nodes=st.integers(1, 13), leaf=st.integers(1, 4), pod=st.integers(1, 3), spines=st.integers(1, 3))
@settings(max_examples=25)
def test_the_verifier_reads_the_same_trees_and_rails(nodes: int, leaf: int, pod: int, spines: int) -> None:
    levels = {**THREE_LEVELS, "nodes_per_leaf": leaf, "leaves_per_pod": pod, "spines": spines, "cores": leaf}
    rails = {**RAILS, "nodes_per_pod": leaf, "rails": pod, "spines": spines}
    for fabric in (levels, {**levels, "uplinks": "hashed", "flows_per_pair": pod}, rails):
        instance = tiny_instance(cluster={"nodes": nodes, "fabric": fabric}, parallelism={"dp": 1})
        routes, network = compile_routes(build_fabric(instance), nodes), read_network(instance).whole
        assert network.links == routes.links
        assert network.bandwidth == pytest.approx(routes.bandwidth)
        theirs = np.zeros((len(network.links), nodes, nodes))
        theirs[network.link, network.source, network.target] = network.share
        assert len(network.share) == np.count_nonzero(theirs)
        assert_near(routes.shares.toarray().reshape(-1, nodes, nodes), theirs)


def test_nvlink_joins_the_nodes_of_a_domain() -> None:
    plain = routes_of(parallelism={"dp": 1}, cluster={"nodes": 6})
    nics = {"per_node": 2, "gb_per_s": 200.0, "receive": "source-rail"}
    instance = tiny_instance(parallelism={"dp": 1}, cluster={"nodes": 6, "nvlink_domain_nodes": 4, "nics": nics})
    routes = node_routes(instance)
    table = routes.shares.toarray().reshape(-1, 6, 6)
    domain = np.arange(6) // 4
    assert not table[:, domain[:, None] == domain[None, :]].any()
    apart = domain[:, None] != domain[None, :]
    assert (table[: len(plain.links), apart] == plain.shares.toarray().reshape(-1, 6, 6)[:, apart]).all()
    assert routes.hops[0].tolist() == [0, 0, 0, 0, 4, 4]
    network = read_network(instance).whole
    theirs = np.zeros_like(table)
    theirs[network.link, network.source, network.target] = network.share
    assert network.links == routes.links
    assert_near(table, theirs)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"placement": {"dispatch": "per-node"}, "traffic": {"kind": "trace"}}, r"placement\.dispatch: per-node"),
        ({"nics": {"per_node": 2, "gb_per_s": 200.0, "receive": "destination-gpu"}}, "receive: destination-gpu"),
    ],
)
def test_domains_need_copies_that_count_one_by_one(changes: dict[str, object], field: str) -> None:
    cluster = {"nvlink_domain_nodes": 2, **({"nics": changes.pop("nics")} if "nics" in changes else {})}
    with pytest.raises(InputError, match=rf"cluster\.nvlink_domain_nodes: found 2, with .*{field}"):
        tiny_instance(cluster=cluster, **changes)


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
