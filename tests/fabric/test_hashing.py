"""Hashed flows: the fullest path, by enumeration, and what it makes of a fat tree's links."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import DefectError
from moe_placer.fabric import build_fabric, graph
from moe_placer.fabric.hashing import fullest_over_mean
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
    even = {"replica_routing": "even"}  # so that leaves send to each other
    instance = tiny_instance(cluster={"fabric": {"uplinks": "hashed", "oversubscription": 4.0}}, placement=even)
    traffic = tiny_traffic(instance)
    assert solve(instance, traffic, solver="contiguous").verification.ok
    monkeypatch.setattr(graph, "fullest_over_mean", lambda flows, paths: 1.0)
    with pytest.raises(DefectError, match=r"\[z\] layer 1"):
        solve(instance, traffic, solver="contiguous")


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
