"""The simulated step with NICs: by hand, and every byte that the verifier counts, there and back, on its NIC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import MESH, ONE_LAYER, level_traffic, placement_data, tiny_instance, tiny_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.schedule.added_replicas import Wish, find_candidates, free_slots
from moe_placer.schedule.busiest_link import layer_link_times
from moe_placer.schedule.network import Network
from moe_placer.schedule.nic_ends import NicEnds
from moe_placer.schedule.simulate import simulate_placement
from moe_placer.solve.solve import solve


def nics(receive: str = "destination-gpu", per_node: int = 2) -> dict[str, Any]:
    return {"nics": {"per_node": per_node, "gb_per_s": 400.0 / per_node, "receive": receive}}


def test_a_transfer_takes_as_long_as_its_busiest_nic_by_hand() -> None:
    instance = tiny_instance(cluster={"nodes": 2, "fabric": MESH, **nics()}, parallelism={"dp": 1})
    net = Network(instance, tolerance=0.0)
    assert net.nics is not None
    assert net.links[2:] == net.nics.names
    ends = net.nics.dispatch(0, np.array([[0.5, 0.5], [0.9, 0.1]]))  # node 0 to node 1: most to its first GPU
    net.start(0.0, np.array([[0.0, 3.2e8], [0.0, 0.0]]), ends)
    # 90% of 320 MB over a NIC of 200 GB/s, of which 80% are reached: 160,000 bytes/µs.
    found = net.next_end()
    assert found is not None
    assert found[0] == pytest.approx(0.9 * 3.2e8 / 160_000)
    net.advance(found[0])
    carried = dict(zip(net.links, net.carried.tolist(), strict=True))
    assert carried["node1/nic0->node1"] == pytest.approx(0.9 * 3.2e8)
    assert carried["node0->node0/nic0"] == carried["node0->node0/nic1"] == pytest.approx(1.6e8)
    assert carried["node0->node1"] == pytest.approx(3.2e8)
    assert carried["node0/nic0->node0"] == 0


def test_a_hot_nic_is_full_whatever_else_arrives_at_its_node_by_hand() -> None:
    # Node 0 sends 90% of its bytes to GPU 0 of node 2, node 1 as much to GPU 1, which gets the other 10%, too. Were
    # what node 0 sends one flow at one pace, NIC 0 would wait for NIC 1, where the two are equals.
    one_leaf = {"kind": "fat-tree", "nodes_per_leaf": 3, "spines": 1}
    instance = tiny_instance(cluster={"nodes": 3, "fabric": one_leaf, **nics()}, parallelism={"dp": 1})
    net = Network(instance, tolerance=0.0)
    assert net.nics is not None
    for home, size, shares in ((0, 3.2e8, [0.9, 0.1]), (1, 2.56e8, [0.0, 1.0])):
        sent = np.zeros((3, 3))
        sent[home, 2] = size
        net.start(0.0, sent, net.nics.dispatch(home, np.array([shares] * 3)))
    ends = ended(net)
    # 288 MB over either NIC of node 2, at 160,000 bytes/µs.
    assert max(ends.values()) == pytest.approx(1800.0)
    assert ends[1] == pytest.approx(1800.0)


def ended(net: Network) -> dict[int, float]:
    """When each transfer of a network ends, µs."""
    found: dict[int, float] = {}
    while (coming := net.next_end()) is not None:
        found |= dict.fromkeys(net.advance(coming[0]), coming[0])
    return found


@given(seed=st.integers(0, 10_000), back=st.booleans())
@settings(max_examples=15, deadline=None)
def test_transfers_end_as_if_every_gpu_were_a_node(seed: int, back: bool) -> None:
    rng, (nodes, ports) = np.random.default_rng(seed), (3, 2)
    leaf = {"kind": "fat-tree", "nodes_per_leaf": 6, "spines": 1}
    by_node = tiny_instance(cluster={"nodes": nodes, "fabric": leaf, **nics()}, parallelism={"dp": 1})
    single = {"nodes": nodes * ports, "gpus_per_node": 1, "fabric": {**leaf, "node_gb_per_s": 200.0}}
    by_gpu = tiny_instance(cluster=single, parallelism={"dp": 1})
    share = rng.dirichlet(np.full(ports, 0.4), (nodes, nodes))
    size = rng.gamma(0.5, 1e7, (nodes, nodes)) * (1 - np.eye(nodes))
    coarse, fine = Network(by_node, tolerance=0.0), Network(by_gpu, tolerance=0.0)
    assert coarse.nics is not None
    gpus_of: dict[int, list[int]] = {}
    for home in range(nodes):
        ends = coarse.nics.combine(home, share[home]) if back else coarse.nics.dispatch(home, share[home])
        sent = np.zeros((nodes, nodes))
        sent[home] = size[home]
        name = coarse.start(0.0, sent, ends)
        parts = size[home][:, None] * share[home]
        gpus_of[name] = []
        for port in range(ports):
            row = np.zeros((nodes * ports, nodes * ports))
            row[home * ports + port] = (parts[:, [port]].repeat(ports, axis=1) if back else parts).ravel() / ports
            gpus_of[name].append(fine.start(0.0, row))
    together, apart = ended(coarse), ended(fine)
    assert together == pytest.approx({name: max(apart[gpu] for gpu in own) for name, own in gpus_of.items()})


@pytest.mark.parametrize("per_node", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("receive", "serving"),
    [
        ("source-rail", {}),
        ("destination-gpu", {}),
        ("source-rail", {"dispatch": "per-node"}),
        ("destination-gpu", {"dispatch": "per-gpu", "slots_per_gpu": 2}),
    ],
)
def test_a_step_carries_what_the_verifier_counts(receive: str, serving: dict[str, Any], per_node: int) -> None:
    both = {"dispatch_dtype": "fp8", "combine_dtype": "bf16", **serving}
    instance = tiny_instance(cluster={"gpus_per_node": 4, **nics(receive, per_node)}, placement=both)
    traffic = tiny_tokens(instance, per_node)
    solution = solve(instance, traffic, solver="greedy", limits=Limits(bounds=False))
    step = simulate_placement(instance, solution.placement, traffic)
    there = dict(zip(solution.verification.links, solution.verification.load.sum(axis=0).tolist(), strict=True))
    ends = {link: link.partition("->") for link in there}
    bytes_ = {link: there[link] * 68 + there[f"{head}->{tail}"] * 128 for link, (tail, _, head) in ends.items()}
    assert dict(zip(step.network.links, step.network.carried.tolist(), strict=True)) == pytest.approx(bytes_)
    assert layer_link_times(step).sum(axis=0) == pytest.approx(step.network.carried / step.network.capacity)


def test_a_busy_nic_makes_the_step_longer() -> None:
    # All tokens want expert 0, and a slow network shows it: shared NICs receive at 0.4 GB/s, one of eight at 0.05.
    steps = []
    for receive in ("shared", "destination-gpu"):
        fabric = {"node_gb_per_s": 0.4}
        card = {"per_node": 8, "gb_per_s": 0.05, "receive": receive}
        instance = tiny_instance(
            model={**ONE_LAYER, "top_k": 1}, cluster={"gpus_per_node": 8, "fabric": fabric, "nics": card}
        )
        traffic = level_traffic(instance, [[97, 1, 1, 1]], 100)
        gpu = [[[0, 16], [8, 24], [1, 17], [9, 25]]]
        records = [{"layer": 0, "z": 0.0, "bound": 0.0, "proof": "solver"}]
        placement = Placement.model_validate(placement_data(instance, gpu, traffic, records))
        steps.append(simulate_placement(instance, placement, traffic))
    shared, own = (step.makespan for step in steps)
    assert own > 3 * shared
    hottest = int(layer_link_times(steps[1]).sum(axis=0).argmax())
    assert "/nic0" in steps[1].network.links[hottest]


def test_a_replica_relieves_the_gpu_behind_a_busy_nic() -> None:
    instance = tiny_instance(
        model={**ONE_LAYER, "top_k": 1},
        cluster={"gpus_per_node": 4, **nics(per_node=4)},
        placement={"replica_routing": "even"},
    )
    traffic = level_traffic(instance, [[70, 10, 10, 10]], 100)
    gpu = [[[0, 4], [1, 5], [8, 12], [9, 13]]]
    records = [{"layer": 0, "z": 0.0, "bound": 0.0, "proof": "solver"}]
    placement = Placement.model_validate(placement_data(instance, gpu, traffic, records))
    free = free_slots(instance, placement)
    for link in ("node0/nic0->node0", "node0->node0/nic0"):
        found = find_candidates(instance, placement, traffic, Wish(links=(link,)), placement, free)
        assert [(one.expert, one.beside) for one in found] == [(0, 0)]
        assert found[0].gpu not in {0, 4}


def test_no_ends_where_nics_are_one_pipe() -> None:
    assert NicEnds.of(tiny_instance()) is None
    assert NicEnds.of(tiny_instance(cluster=nics("source-rail"))) is None
