"""Dispatch once per GPU or node: counted twice, against every token one by one, and searched with exact changes."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import (
    assert_near,
    in_order,
    placement_data,
    recomputed,
    rules_of,
    smallest_z,
    tiny_instance,
    tiny_tokens,
    tiny_traffic,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.errors import InputError
from moe_placer.fabric import build_fabric, compile_routes, token_cost
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.coverage_search import search_coverage
from moe_placer.search.coverage_tables import sample
from moe_placer.search.coverage_trades import CoverageTrades, Trades
from moe_placer.search.grouping import co_activation, group_by_affinity, view_places
from moe_placer.search.moves import repair
from moe_placer.solve.solve import solve
from moe_placer.solvers.affinity import balance_groups
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.traffic.synthetic import synthesize
from moe_placer.traffic.token_sets import TokenSets

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CASES: dict[str, dict[str, Any]] = {
    "node": {"placement": {"dispatch": "per-node"}},
    "node, even": {"placement": {"dispatch": "per-node", "replica_routing": "even"}},
    "node, one replica": {"parallelism": {"dp": 1}, "placement": {"dispatch": "per-node", "replica_routing": "even"}},
    "node, budget": {
        "placement": {"dispatch": "per-node", "replica_routing": "even", "replicas": {"redundant_slots": 3}}
    },
    "node, spare slots": {"cluster": {"gpus_per_node": 3}, "placement": {"dispatch": "per-node"}},
    "node, sharded": {"parallelism": {"dp": 1, "expert_tp": 2}, "placement": {"dispatch": "per-node"}},
    "node, full mesh": {"cluster": {"fabric": {"kind": "full-mesh"}}, "placement": {"dispatch": "per-node"}},
    "node, tokens": {"placement": {"dispatch": "per-node"}, "objective": {"metric": "tokens"}},
    "GPU": {"cluster": {"nodes": 2}, "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2}},
    "GPU, even": {
        "cluster": {"nodes": 2},
        "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2, "replica_routing": "even"},
    },
    "GPU, alone": {"placement": {"dispatch": "per-gpu"}},
    "expert": {},
}


def case(name: str, seed: int = 0) -> tuple[Instance, Traffic, Problem]:
    instance = tiny_instance(**{"model": {"top_k": 3}, **CASES[name]})
    traffic = tiny_tokens(instance, seed)
    return instance, traffic, compile_problem(instance, traffic)


def random_node(layer: LayerProblem, seed: int) -> Ints:
    """Place items at random, within all limits."""
    rng = np.random.default_rng(seed)
    node = repair(layer, rng.permutation(np.repeat(np.arange(layer.nodes), layer.slots))[: layer.items], rng)
    assert node is not None
    return node


def cost_by_tokens(instance: Instance, traffic: Traffic, row: int, gpus: list[list[int]]) -> Floats:
    """Send every token on its own: cost of every link of the fabric.

    ``gpus[e]`` lists the first GPU of each replica of expert e. Where a token draws replicas, all draws are tried, each
    with its chance.
    """
    cluster, unit = instance.cluster, instance.placement.dispatch
    even = instance.placement.replica_routing == "even"
    flow = np.zeros((cluster.nodes, cluster.nodes))
    for recording, s in product(range(len(traffic.recordings)), range(cluster.nodes)):
        topk = traffic.recordings[recording].topk
        assert topk is not None
        tokens = instance.traffic.tokens_per_gpu * cluster.gpus_per_node * traffic.mix[s, recording] / len(topk)
        group = s * instance.parallelism.dp // cluster.nodes
        for token in topk[:, row].tolist():
            options = [gpus[e] if even else [gpus[e][group]] for e in token]
            draws = list(product(*options))
            for draw in draws:
                reached = draw if unit == "per-expert" else set(draw)
                if unit == "per-node":
                    reached = {gpu // cluster.gpus_per_node * cluster.gpus_per_node for gpu in draw}
                for gpu in reached:
                    flow[s, gpu // cluster.gpus_per_node] += tokens / len(draws)
    np.fill_diagonal(flow, 0.0)
    routes = compile_routes(build_fabric(instance), cluster.nodes)
    return np.asarray(routes.shares @ flow.ravel()) * token_cost(instance, routes.bandwidth)


def gpus_of(instance: Instance, problem: Problem, layer: LayerProblem, node: Ints) -> list[list[Any]]:
    """Give items GPUs of their places, in order, shards beside each other."""
    size, tp = problem.gpus_per_node, problem.shards
    rows: list[list[Any]] = [[] for _ in range(instance.model.experts)]
    for place in range(layer.nodes):
        for position, item in enumerate(np.flatnonzero(node == place).tolist()):
            first = place * size + position * tp // instance.placement.slots_per_gpu % size if size > 1 else place
            rows[int(layer.expert[item])].append((int(layer.replica[item]), first))
    return [[gpu for _, gpu in sorted(row)] for row in rows]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_problem_and_verifier_count_what_every_token_sends(name: str, seed: int) -> None:
    instance, traffic, problem = case(name, seed)
    layer = problem.layer(0)
    node = random_node(layer, seed)
    gpus = gpus_of(instance, problem, layer, node)
    expected = cost_by_tokens(instance, traffic, 0, gpus)
    links = compile_routes(build_fabric(instance), instance.cluster.nodes).links
    own = {link: k for k, link in enumerate(problem.links)}
    ours = layer.cost(node)
    assert {link: ours[k] for link, k in own.items()} == pytest.approx(
        {link: expected[links.index(link)] for link in own}, rel=1e-9, abs=1e-9
    )
    assert layer.z(node) == pytest.approx(expected.max(), rel=1e-9)
    tp = instance.parallelism.expert_tp
    shards = [[list(range(gpu, gpu + tp)) if tp > 1 else gpu for gpu in row] for row in gpus]
    checked = recomputed(instance, [shards for _ in instance.moe_layers], traffic)
    assert dict(zip(checked.links, checked.cost[0], strict=True)) == pytest.approx(
        dict(zip(links, expected, strict=True)), rel=1e-9, abs=1e-9
    )


def by_hand() -> tuple[Instance, Traffic]:
    """Two nodes of two GPUs; three tokens of node 0 choose {0, 1}, {2, 3} and {0, 2} of 4 experts; 2 start per GPU."""
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": []},
        cluster={"nodes": 2, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
        placement={"dispatch": "per-node"},
        traffic={"kind": "trace", "tokens_per_gpu": 1.5},
    )
    topk = np.array([[[0, 1]], [[2, 3]], [[0, 2]]], dtype=np.uint8)
    load = np.bincount(topk.ravel(), minlength=4).astype(np.float64)[None]
    return instance, Traffic((Recording("hand", load, np.array([3.0]), topk),), np.ones((2, 1)))


def test_a_case_known_by_hand() -> None:
    instance, traffic = by_hand()
    layer = compile_problem(instance, traffic).layer(0)
    # Node 1 holds 2 and 3: tokens two and three of node 0 go there, once each, and of node 1 one and three come back.
    assert layer.cost(np.array([0, 0, 1, 1])).tolist() == pytest.approx([2.0, 2.0])
    # Node 1 holds 1 and 3: tokens one and two go there; all three have an expert on node 0.
    assert sorted(layer.cost(np.array([0, 1, 0, 1])).tolist()) == pytest.approx([2.0, 3.0])
    placed = [[[0], [1], [2], [3]]]
    assert recomputed(instance, placed, traffic).layers[0].z == pytest.approx(2.0)


@pytest.mark.parametrize("dispatch", ["per-node", "per-gpu"])
def test_loads_do_not_say_what_fires_together(dispatch: str) -> None:
    instance = tiny_instance(placement={"dispatch": dispatch, "slots_per_gpu": 2})
    traffic = tiny_traffic(instance)
    with pytest.raises(InputError, match="loads do not say"):
        compile_problem(instance, traffic)
    with pytest.raises(InputError, match="loads do not say"):
        recomputed(instance, in_order(instance), traffic)


def test_combinations_that_cannot_be_solved_say_why() -> None:
    with pytest.raises(InputError, match="replicas apart by node cannot be solved"):
        tiny_instance(placement={"dispatch": "per-gpu", "slots_per_gpu": 2, "replicas_apart": "node"})
    with pytest.raises(InputError, match="needs its tokens on all of them"):
        tiny_instance(parallelism={"dp": 1, "expert_tp": 2}, placement={"dispatch": "per-gpu"})
    with pytest.raises(InputError, match="loads do not say"):
        tiny_instance(placement={"dispatch": "per-node"}, traffic={"kind": "load"})


def test_a_proof_of_one_replica_per_expert_is_no_proof_here() -> None:
    instance, traffic = by_hand()
    gpu = [[[0], [1], [2], [3]]]
    weights = dict.fromkeys(recomputed(instance, gpu, traffic).links, 0.5)
    record = {"layer": 0, "z": 2.0, "bound": 1.0, "proof": "dual", "weights": weights}
    data = placement_data(instance, gpu, traffic, [{**record, "worst_link": next(iter(weights))}])
    assert "proof" in rules_of(instance, data, traffic)


@pytest.mark.parametrize("name", [name for name in CASES if name not in {"expert", "GPU, alone"}])
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_tables_foresee_the_cost_of_every_trade(name: str, seed: int) -> None:
    layer = case(name, seed)[2].layer(0)
    trades = CoverageTrades(layer, random_node(layer, seed), 1000)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        found = trades.promising(max(trades.z, 1e-9), 30.0, 10_000)
        after = trades.costs_after(found)
        for i in range(len(found)):
            node = trades.node.copy()
            if found.partner[i] >= 0:
                node[found.partner[i]] = node[found.item[i]]
            node[found.item[i]] = found.to[i]
            assert layer.valid(node)
            assert_near(after[i], layer.cost(node), rel=1e-9, least=1e-9)
        if not trades.random_trade(rng):
            break
        assert_near(trades.cost, layer.cost(trades.node), rel=1e-9, least=1e-9)


def test_a_free_slot_is_a_partner() -> None:
    layer = case("node, spare slots")[2].layer(0)
    trades = CoverageTrades(layer, random_node(layer, 0), 1000)
    found = trades.promising(trades.z, 30.0, 10_000)
    assert isinstance(found, Trades)
    assert (found.partner == -1).any()


@pytest.mark.parametrize("routing", ["group", "even"])
def test_search_finds_the_optimum_of_tiny_layers(routing: str) -> None:
    instance = tiny_instance(
        model={"experts": 6, "top_k": 3},
        cluster={"nodes": 3},
        parallelism={"dp": 1},
        placement={"dispatch": "per-node", "replica_routing": routing},
    )
    for seed in range(4):
        layer = compile_problem(instance, tiny_tokens(instance, seed)).layer(0)
        start = random_node(layer, seed)
        found = search_coverage(layer, [start], 0.0, 0.2, np.random.default_rng(seed), Deadline())
        assert layer.valid(found.node)
        assert found.z == pytest.approx(layer.z(found.node))
        assert found.z == pytest.approx(smallest_z(layer))


def test_experts_that_fire_together_share_a_node() -> None:
    instance, traffic = by_hand()
    solution = solve(instance, traffic, limits=Limits(time_s=240.0, work=0.1))
    assert solution.verification.total_z == pytest.approx(2.0)
    homes = [solution.placement.gpu[0][expert][0] // 2 for expert in range(4)]
    assert homes[0] == homes[1] != homes[2] == homes[3]


def test_a_sample_keeps_the_shares_of_sets() -> None:
    sets = TokenSets(np.array([[0], [1], [0]]), np.array([0, 0, 1]), np.array([900, 100, 5]), np.array([1000, 5]), 2)
    classes, files = sample(sets, 100)
    assert np.bincount(files).tolist() == [100, 5]
    assert np.bincount(classes).tolist() == [90, 10, 5]
    assert np.bincount(sample(sets, 10_000)[0]).tolist() == [900, 100, 5]


def test_affinity_groups_what_fires_together_and_keeps_loads_even() -> None:
    instance = tiny_instance(
        model={"experts": 8, "top_k": 3}, parallelism={"dp": 1}, placement={"dispatch": "per-node"}
    )
    layer = compile_problem(instance, tiny_tokens(instance, 3, (200, 300))).layer(0)
    together = co_activation(layer)
    assert np.trace(together) == pytest.approx(3 * 100 * instance.gpus)
    groups = group_by_affinity(layer)
    hottest = int(together.diagonal().argmax())
    partner = next(e for e in range(8) if e != hottest and groups[e] == groups[hottest])
    assert partner == np.argmax(np.where(np.arange(8) == hottest, -1, together[hottest]))
    even = balance_groups(layer, groups, 0.0)
    assert layer.valid(even)
    before, after = (np.bincount(node, layer.load).max() for node in (groups, even))
    assert after <= before


def test_view_places_keep_a_view_on_its_own_nodes_while_there_is_room() -> None:
    layer = case("node")[2].layer(0)
    found = view_places(layer)
    assert [count.tolist() for _, count in found] == [[2, 2, 0, 0], [0, 0, 2, 2]]


def test_synthetic_traffic_has_token_sets() -> None:
    instance = tiny_instance(placement={"dispatch": "per-node"}, traffic={"kind": "synthetic"})
    solution = solve(instance, synthesize(instance, 1, tokens=50), limits=Limits(time_s=240.0, work=0.05))
    assert solution.verification.ok


def test_the_aggregate_is_refused_in_words() -> None:
    instance = tiny_instance(placement={"dispatch": "per-node"}, objective={"minimise": "aggregate"})
    with pytest.raises(Exception, match="needs all layers jointly"):
        solve(instance, tiny_tokens(instance), limits=Limits(time_s=1.0))
