"""Hashed flows: the fullest path, by enumeration, and what it makes of a fat tree's links."""

from __future__ import annotations

import itertools
from collections import Counter

import networkx as nx
import numpy as np
import pytest
from builders import THREE_LEVELS, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import DefectError
from moe_placer.fabric import build_fabric, graph
from moe_placer.fabric.hashing import fullest_over_mean
from moe_placer.schedule.network import Network
from moe_placer.solve.solve import solve
from moe_placer.verifier.hashed import fullest_path
from moe_placer.verifier.loads import read_network


@pytest.mark.parametrize(("flows", "paths"), [(1, 3), (2, 2), (3, 2), (4, 3), (5, 4), (7, 2)])
def test_the_fullest_path_by_enumeration(flows: int, paths: int) -> None:
    fullest = [max(Counter(drawn).values()) for drawn in itertools.product(range(paths), repeat=flows)]
    assert fullest_over_mean(flows, paths) == pytest.approx(np.mean(fullest) * paths / flows, rel=1e-9)
    assert fullest_path(flows, paths) == pytest.approx(np.mean(fullest) * paths / flows, rel=1e-12)


@pytest.mark.parametrize(("flows", "paths"), [(0, 4), (9, 1), (90, 3), (300, 7), (200, 33), (513, 8), (30_000, 32)])
def test_the_verifier_counts_the_same_in_its_own_way(flows: int, paths: int) -> None:
    assert fullest_path(flows, paths) == pytest.approx(fullest_over_mean(flows, paths), rel=1e-10)


def test_a_wrong_bandwidth_of_solvers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def solved(oversubscription: float) -> bool:
        fabric = {"uplinks": "hashed", "oversubscription": oversubscription}
        # Even routing, so that leaves send to each other.
        instance = tiny_instance(cluster={"fabric": fabric}, placement={"replica_routing": "even"})
        return solve(instance, tiny_traffic(instance), solver="contiguous").verification.ok

    assert solved(4.0)
    assert solved(4.25)
    monkeypatch.setattr(graph, "fullest_over_mean", lambda flows, paths: 1.0)
    with pytest.raises(DefectError, match=r"\[z\] layer 1"):
        solved(4.375)  # routes of fabrics are kept: nobody else asks for this one


@given(flows=st.integers(1, 5000), paths=st.integers(1, 64))
@settings(max_examples=20, deadline=None)
def test_more_flows_are_more_even(flows: int, paths: int) -> None:
    found = fullest_over_mean(flows, paths)
    assert found * (1 + 1e-9) >= 1
    assert found <= paths * (1 + 1e-9)
    assert fullest_over_mean(2 * flows, paths) <= found * (1 + 5e-3)


def test_where_it_is_no_longer_exact_it_hardly_differs() -> None:
    assert fullest_over_mean(512, 8) == pytest.approx(fullest_over_mean(513, 8), rel=5e-3)


def test_links_of_leaves_and_spines_count_with_what_the_fullest_leaves() -> None:
    plain = tiny_instance()  # 4 nodes of 2 GPUs on 2 leaves and 2 spines: 2 x 2 x 2 flows from leaf to leaf
    hashed = tiny_instance(cluster={"fabric": {"uplinks": "hashed"}})
    single = tiny_instance(cluster={"fabric": {"uplinks": "hashed", "flows_per_pair": 1}})
    graphs = [build_fabric(instance) for instance in (plain, hashed, single)]
    up = [one.edges["leaf0", "spine1"]["bandwidth"] for one in graphs]
    assert up[0] / up[1] == pytest.approx(fullest_over_mean(8, 2))
    assert up[0] / up[2] == pytest.approx(11 / 8)  # of 4 flows the fullest of 2 has 4, 3 or 2: 2/16, 8/16, 6/16
    assert {one.edges["node0", "leaf0"]["bandwidth"] for one in graphs} == {400.0}
    assert plain.sha256 != hashed.sha256
    network = read_network(hashed)
    assert network.bandwidth[network.links.index("leaf0->spine1")] == pytest.approx(up[1], rel=1e-12)


def test_three_levels_by_hand_and_by_enumeration() -> None:
    """All hashes of all flows on two pods of two leaves of one node, two spines a pod and two cores a spine."""
    levels = {**THREE_LEVELS, "cores": 2}
    sprayed, hashed = (
        build_fabric(tiny_instance(cluster={"fabric": {**levels, "uplinks": uplinks, "flows_per_pair": 1}}))
        for uplinks in ("spray", "hashed")
    )
    assert {(a, b) for a, b in sprayed.edges} == {(a, b) for a, b in hashed.edges}
    # Node 0 sends to three others, over two spines: of 8 draws 2 have all three on one, the others two.
    assert fullest(sprayed, [(0, 1), (0, 2), (0, 3)], "leaf0", "spine") == (2 * 3 + 6 * 2) / 8
    crowded = {(a, b): sprayed.edges[a, b]["bandwidth"] / hashed.edges[a, b]["bandwidth"] for a, b in hashed.edges}
    assert crowded["leaf0", "spine1"] == crowded["spine2", "leaf3"] == pytest.approx(18 / 8 / (3 / 2))
    # A pod has four links to cores, for four flows: of 256 draws 4, 48, 180, 24 have 4, 3, 2, 1 on the fullest.
    leaving = fullest(sprayed, [(0, 2), (0, 3), (1, 2), (1, 3)], "spine", "core")
    assert leaving == np.dot([4, 48, 180, 24], [4, 3, 2, 1]) / 256
    assert crowded["spine0", "core1"] == crowded["core3", "spine3"] == pytest.approx(leaving / (4 / 4))
    assert crowded["node0", "leaf0"] == crowded["leaf3", "node3"] == 1


def fullest(graph: nx.DiGraph[str], flows: list[tuple[int, int]], low: str, high: str) -> float:
    """Mean over all hashes of the flows on the fullest link from a switch of one name to one of another.

    A hash takes one of the shortest paths, all alike: leaves and spines each draw a link up.
    """
    ways = [list(nx.all_shortest_paths(graph, f"node{a}", f"node{b}")) for a, b in flows]
    most = []
    for drawn in itertools.product(*ways):
        links = [(a, b) for path in drawn for a, b in itertools.pairwise(path) if a.startswith(low)]
        most.append(max(Counter(b if a == low else (a, b) for a, b in links if b.startswith(high)).values()))
    return float(np.mean(most))


def test_three_levels_with_domains_and_nics() -> None:
    """NVLink domains and NICs change how many flows there are, for the verifier too."""
    fabric = {**THREE_LEVELS, "cores": 2, "uplinks": "hashed"}
    instance = tiny_instance(cluster={"nodes": 8, "fabric": fabric, "nvlink_domain_nodes": 4}, parallelism={"dp": 1})
    bandwidth = build_fabric(instance).edges
    # From a leaf's node 2 flows (GPUs) to each of 4 nodes, and from a pod's 2 nodes as many each.
    assert bandwidth["leaf0", "spine0"]["bandwidth"] == pytest.approx(100 / fullest_over_mean(8, 2))
    assert bandwidth["spine0", "core0"]["bandwidth"] == pytest.approx(400 / 1.5 / 4 / fullest_over_mean(16, 4))
    network = read_network(instance)
    for name, found in zip(network.links, network.bandwidth.tolist(), strict=True):
        assert found == pytest.approx(bandwidth[tuple(name.split("->"))]["bandwidth"], rel=1e-12)
    # Simulated steps run over the same links.
    assert Network(instance).capacity == pytest.approx(network.bandwidth * 0.8 * 1e3, rel=1e-12)  # bytes/µs


def test_old_three_level_files_keep_their_hash() -> None:
    plain, spray, hashed = (
        tiny_instance(cluster={"fabric": {**THREE_LEVELS, **more}})
        for more in ({}, {"uplinks": "spray", "flows_per_pair": 3}, {"uplinks": "hashed"})
    )
    assert plain.sha256 == spray.sha256 != hashed.sha256
