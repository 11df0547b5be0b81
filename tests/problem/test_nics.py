"""NICs as links: by hand, against every token one by one, against every placement there is, and as before without."""

from __future__ import annotations

import os
from collections import defaultdict
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from builders import (
    MESH,
    ONE_LAYER,
    every_valid,
    level_traffic,
    merged,
    placement_data,
    recomputed,
    rules_of,
    tiny_instance,
    tiny_tokens,
    tiny_traffic,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import best_bound, dual_bound, hot_replicas_bound, threshold_bound
from moe_placer.bounds.hot_replicas import least_peak, replicas_needed
from moe_placer.bounds.relaxation import relax
from moe_placer.errors import InputError
from moe_placer.instance import Instance, load_instance
from moe_placer.instance.reader import make_instance
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.moves import repair
from moe_placer.solve.layerwise import LayerTask
from moe_placer.solve.solve import solve
from moe_placer.solvers.auto import Auto
from moe_placer.traffic import load_traffic
from moe_placer.traffic.recording import Traffic

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REPO = Path(__file__).parents[2]
TRACES = Path(os.environ.get("MOE_PLACER_TRACES", REPO.parent / "shared" / "traces"))
REAL = [TRACES / f"esft_deepseek-v2-lite_{text}.npz" for text in ("intent", "summary")]


def nics(receive: str, per_node: int = 2) -> dict[str, Any]:
    return {"nics": {"per_node": per_node, "gb_per_s": 400.0 / per_node, "receive": receive}}


def changed(*parts: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    for part in parts:
        whole = merged(whole, part)
    return whole


EVEN = {"placement": {"replica_routing": "even"}}
BUDGET = {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 2}}}
TWO_SLOTS = {"placement": {"slots_per_gpu": 2}}
RAIL, GPU = {"cluster": nics("source-rail")}, {"cluster": nics("destination-gpu")}
CASES: dict[str, dict[str, Any]] = {
    "rail": RAIL,
    "rail, mesh": changed(RAIL, {"cluster": {"fabric": MESH}}),
    "rail, per node": changed(RAIL, {"placement": {"dispatch": "per-node"}}),
    "rail, per node, even": changed(RAIL, EVEN, {"placement": {"dispatch": "per-node"}}),
    "rail, per GPU": changed(RAIL, TWO_SLOTS, {"placement": {"dispatch": "per-gpu"}}),
    "rail, tokens": changed(RAIL, {"objective": {"metric": "tokens"}}),
    "GPU": GPU,
    "GPU, mesh": changed(GPU, {"cluster": {"fabric": MESH}}),
    "GPU, even": changed(GPU, EVEN),
    "GPU, two slots": changed(GPU, TWO_SLOTS),
    "GPU, budget": changed(GPU, BUDGET, TWO_SLOTS),
    "GPU, spare": changed(GPU, {"cluster": {"gpus_per_node": 4}}),  # two GPUs share a NIC
    "GPU, many NICs": {"cluster": nics("destination-gpu", 4)},
    "GPU, one NIC": {"cluster": nics("destination-gpu", 1)},
    "GPU, tokens": changed(GPU, {"objective": {"metric": "tokens"}}),
    "GPU, failed": {
        "cluster": {"gpus_per_node": 4, **nics("destination-gpu", 4)},
        "placement": {"failed_gpus": [0]},
    },
    "GPU, per GPU": changed(GPU, TWO_SLOTS, {"placement": {"dispatch": "per-gpu"}}),
    "GPU, per GPU, even": changed(GPU, EVEN, TWO_SLOTS, {"placement": {"dispatch": "per-gpu"}}),
    "GPU, per GPU, shared NIC": changed(
        {"cluster": nics("destination-gpu", 1)}, TWO_SLOTS, {"placement": {"dispatch": "per-gpu"}}
    ),
}  # fmt: skip


def case(name: str, seed: int = 0) -> tuple[Instance, Traffic, Problem]:
    instance = tiny_instance(**CASES[name])
    traffic = tiny_tokens(instance, seed, (5, 9))
    return instance, traffic, compile_problem(instance, traffic)


def random_place(layer: LayerProblem, seed: int) -> Ints:
    rng = np.random.default_rng(seed)
    place = repair(layer, rng.permutation(np.repeat(np.arange(layer.nodes), layer.slots))[: layer.items], rng)
    assert place is not None
    return place


def used_nics(instance: Instance, gpu: int) -> list[tuple[int, float]]:
    """NICs of a GPU of its node, with its share of what it sends: those that its part of the node overlaps with."""
    cluster = instance.cluster
    assert cluster.nics is not None
    gpus, per_node = cluster.gpus_per_node, cluster.nics.per_node
    begin, end = gpu % gpus / gpus, (gpu % gpus + 1) / gpus
    over = [max(0.0, min(end, (nic + 1) / per_node) - max(begin, nic / per_node)) for nic in range(per_node)]
    return [(nic, part / sum(over)) for nic, part in enumerate(over) if part > 1e-9]


def nic_costs(instance: Instance, traffic: Traffic, gpus: list[list[int]]) -> dict[str, float]:
    """Send every token of the first MoE layer on its own, from every GPU, and cost what passes each NIC.

    ``gpus[e]`` lists the GPU of each replica of expert e. Where a token draws replicas, all draws are tried.
    """
    cluster, unit, even = instance.cluster, instance.placement.dispatch, instance.placement.replica_routing == "even"
    assert cluster.nics is not None
    size, load = cluster.gpus_per_node, defaultdict[str, float](float)
    for index, start in product(range(len(traffic.recordings)), range(instance.gpus)):
        topk, node = traffic.recordings[index].topk, start // size
        assert topk is not None
        tokens = instance.traffic.tokens_per_gpu * traffic.mix[node, index] / len(topk)
        group = node * instance.parallelism.dp // cluster.nodes
        for token in topk[:, 0].tolist():
            draws = list(product(*(gpus[e] if even else [gpus[e][group]] for e in token)))
            for draw in draws:
                reached = {"per-expert": list(draw), "per-gpu": set(draw), "per-node": {g // size * size for g in draw}}
                for gpu in reached[unit]:
                    if (other := gpu // size) == node:
                        continue
                    for nic, part in used_nics(instance, start):
                        count = tokens * part / len(draws)
                        load[f"node{node}->node{node}/nic{nic}"] += count
                        if cluster.nics.receive == "source-rail":
                            load[f"node{other}/nic{nic}->node{other}"] += count
                    if cluster.nics.receive == "destination-gpu":
                        for nic, part in used_nics(instance, gpu):
                            load[f"node{other}/nic{nic}->node{other}"] += tokens * part / len(draws)
    factor = 1.0 if instance.objective.metric == "tokens" else cluster.fabric.node_gb_per_s / cluster.nics.gb_per_s
    return {name: count * factor for name, count in load.items()}


def placed(instance: Instance, problem: Problem, layer: LayerProblem, place: Ints) -> list[list[int]]:
    """GPU of each replica, where places are GPUs or nodes: within a node, in order."""
    size, slots = problem.gpus_per_node, instance.placement.slots_per_gpu
    rows: list[list[tuple[int, int]]] = [[] for _ in range(instance.model.experts)]
    for one in range(layer.nodes):
        for position, item in enumerate(np.flatnonzero(place == one).tolist()):
            gpu = one * size + (position // slots if size > 1 else 0)
            rows[int(layer.expert[item])].append((int(layer.replica[item]), gpu))
    return [[gpu for _, gpu in sorted(row)] for row in rows]


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=3)
@given(seed=st.integers(0, 10_000))
def test_problem_and_verifier_count_what_passes_every_nic(name: str, seed: int) -> None:
    instance, traffic, problem = case(name, seed)
    layer = problem.layer(0)
    place = random_place(layer, seed)
    gpus = placed(instance, problem, layer, place)
    expected = nic_costs(instance, traffic, gpus)
    checked = recomputed(instance, [gpus for _ in instance.moe_layers], traffic)
    theirs = dict(zip(checked.links, checked.cost[0].tolist(), strict=True))
    assert {link: cost for link, cost in theirs.items() if "/nic" in link and cost > 1e-9} == pytest.approx(expected)
    # The problem has one of links that always cost the same; its worst is the worst of all.
    ours = dict(zip(problem.links, layer.cost(place).tolist(), strict=True))
    assert ours == pytest.approx({link: theirs[link] for link in ours}, rel=1e-9, abs=1e-9)
    assert layer.z(place) == pytest.approx(checked.layers[0].z, rel=1e-9)
    assert layer.z(place) >= max(expected.values()) * (1 - 1e-9)
    assert sum(problem.multiplicity) == len(checked.links)


def two_nodes(receive: str, slots: int = 1, **placement: Any) -> tuple[Instance, Traffic]:
    """Two nodes of two GPUs, two NICs each; of a node's 200 tokens, 140, 30, 20 and 10 choose experts 0 to 3."""
    instance = tiny_instance(
        model={**ONE_LAYER, "top_k": 1},
        cluster={"nodes": 2, "fabric": MESH, **nics(receive)},
        parallelism={"dp": 1},
        placement={"slots_per_gpu": slots, **placement},
    )
    return instance, level_traffic(instance, [[70, 15, 10, 5]], 100)


def test_each_habit_by_hand() -> None:
    # Experts 0 and 1 on node 0: node 1 sends it 170 tokens, and node 0 sends 30 to node 1.
    gpu = [[[0], [1], [2], [3]]]
    instance, traffic = two_nodes("shared")
    assert recomputed(instance, gpu, traffic).links == ("node0->node1", "node1->node0")
    instance, traffic = two_nodes("source-rail")
    found = recomputed(instance, gpu, traffic)
    # Either NIC carries half of it at half the bandwidth.
    load = dict(zip(found.links, found.load[0].tolist(), strict=True))
    assert load["node0/nic0->node0"] == load["node0/nic1->node0"] == load["node1->node1/nic1"] == pytest.approx(85)
    assert load["node1/nic0->node1"] == load["node0->node0/nic0"] == pytest.approx(15)
    assert found.layers[0].z == pytest.approx(170)
    instance, traffic = two_nodes("destination-gpu")
    found = recomputed(instance, gpu, traffic)
    load = dict(zip(found.links, found.load[0].tolist(), strict=True))
    # The NIC of expert 0's GPU receives what node 1 has for it, 140; those that send share evenly as before.
    assert load["node0/nic0->node0"] == pytest.approx(140)
    assert load["node0/nic1->node0"] == pytest.approx(30)
    assert load["node1/nic0->node1"] == pytest.approx(20)
    assert load["node1->node1/nic0"] == pytest.approx(85)
    assert (found.layers[0].worst_link, found.layers[0].z) == ("node0/nic0->node0", pytest.approx(280))
    # One NIC of 200 GB/s, 2 bytes for each of 64 values, 80% reached.
    assert found.layers[0].worst_link_us == pytest.approx(1e6 * 140 * 128 / (200e9 * 0.8))


def test_floors_by_hand() -> None:
    # With two slots all are taken by pairs: expert 0 with the coldest, 140 + 10 at twice the cost.
    instance, traffic = two_nodes("destination-gpu", slots=2, failed_gpus=[1, 3])
    claims: dict[str, Any] = {"proof": "hot-experts", "hot": (0, 0)}
    assert recomputed(instance, [[[0], [2], [2], [0]]], traffic, **claims).layers[0].bound == pytest.approx(300)
    # Four experts and two further replicas: of 140, 30, 20, 10 the hottest goes down to 140 / 3.
    budget = {"replica_routing": "even", "replicas": {"redundant_slots": 2}}
    instance, traffic = two_nodes("destination-gpu", slots=2, **budget)
    any_: dict[str, Any] = {"proof": "hot-replicas", "any_copies": True}
    gpu = [[[0, 1, 2], [3], [3], [1]]]
    assert recomputed(instance, gpu, traffic, **any_).layers[0].bound == pytest.approx(2 * 140 / 3)
    layer = compile_problem(instance, traffic).layer(0)
    assert hot_replicas_bound(layer).value == pytest.approx(2 * 140 / 3)
    assert hot_replicas_bound(layer).any_replicas


@settings(max_examples=50)
@given(cost=st.lists(st.floats(0.0, 100.0), min_size=1, max_size=6), more=st.integers(0, 9))
def test_the_least_peak_is_that_of_the_best_choice(cost: list[float], more: int) -> None:
    load = np.array(cost)
    choices = combinations_with_replacement(range(len(load)), more)
    best = min(float((load / (1 + np.bincount(c, minlength=len(load)))).max()) for c in choices)
    found = least_peak(load, len(load) + more)
    assert found == pytest.approx(best, rel=1e-9, abs=1e-300)
    assert replicas_needed(load, found) <= len(load) + more or found == 0


TINY_CASES: dict[str, dict[str, Any]] = {
    "one slot": {},
    "two slots": changed(TWO_SLOTS, {"cluster": {"gpus_per_node": 2}}),
    "budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 1}, "slots_per_gpu": 2}},
}


@pytest.mark.parametrize("name", TINY_CASES)
@pytest.mark.parametrize("seed", range(2))
def test_no_placement_beats_the_bounds_and_auto_finds_the_best(name: str, seed: int) -> None:
    small = {
        "model": {"experts": 4 if name == "two slots" else 3, "layers": 2},
        "cluster": {"nodes": 2},
        "parallelism": {"dp": 1},
    }
    instance = tiny_instance(**changed(GPU, small, TINY_CASES[name]))  # fmt: skip
    traffic = tiny_traffic(instance, seed)
    problem, least = compile_problem(instance, traffic), np.inf
    extra = instance.redundant_slots
    for more in combinations_with_replacement(range(instance.model.experts), extra):
        layer = problem.layer(0, 1 + np.bincount(more, minlength=instance.model.experts) if extra else None)
        least = min([least, *(layer.z(place) for place in every_valid(layer))])
    layer = problem.layer(0)
    relaxation = relax(layer, any_replicas=bool(extra))
    assert relaxation is not None
    assert relaxation.share.sum(axis=1) == pytest.approx(np.ones(layer.items))
    bounds = [best_bound(layer, relaxation.weights), hot_replicas_bound(layer)]
    for weights in [relaxation.weights, *np.random.default_rng(seed).dirichlet(np.ones(layer.links), 10)]:
        bounds.append(best_bound(layer, weights))
        if not extra:
            bounds += [dual_bound(layer, weights), threshold_bound(layer, weights, least)]
    assert max(bound.value for bound in bounds) <= least * (1 + 1e-9)
    solution = solve(instance, traffic, limits=Limits(time_s=20, gap=0.0, work=1.0))
    assert solution.objective == pytest.approx(least, rel=1e-9)
    assert 0 < solution.verification.total_bound <= least * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_relaxation_of_gpus_is_that_of_nodes(seed: int) -> None:
    """Solved directly over GPUs, the linear program has the same optimum as over nodes."""
    instance = tiny_instance(**changed(GPU, TWO_SLOTS))
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    layer = problem.layer(0)
    averaged, direct = relax(layer), relax(layer, memory_prices=np.zeros(layer.nodes))
    assert averaged is not None
    assert direct is not None
    assert dual_bound(layer, averaged.weights).value == pytest.approx(dual_bound(layer, direct.weights).value, rel=1e-6)


def test_each_proof_is_derived_anew_and_a_raised_bound_is_reported() -> None:
    instance = tiny_instance(**CASES["GPU, budget"])
    traffic = tiny_traffic(instance, 1)
    solution = solve(instance, traffic, limits=Limits(time_s=10, work=1.0))
    good = solution.placement.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert rules_of(instance, good, traffic) == []
    gpu, z = good["gpu"], [check.z for check in solution.verification.layers]
    proof = {"proof": "hot-replicas", "any_copies": True}
    derived = [check.bound for check in recomputed(instance, gpu, traffic, **proof).layers]
    assert min(derived) > 0
    worst = [check.worst_link for check in solution.verification.layers]

    def broken(**changes: Any) -> list[str]:
        rows = zip(instance.moe_layers, z, derived, worst, strict=True)
        records = [{"layer": n, "z": own, "bound": b, "worst_link": w, **proof} for n, own, b, w in rows]
        records[0] |= changes
        return rules_of(instance, placement_data(instance, gpu, traffic, records), traffic)

    assert broken() == []
    assert broken(bound=derived[0] * (1 + 1e-6)) == ["bound"]
    assert broken(any_copies=None) == ["proof"]
    assert broken(weights={"node0/nic0->node0": 1.0}) == ["weights"]
    assert broken(z=z[0] * 1.01) == ["z"]
    assert broken(worst_link="node9/nic0->node9") == ["worst-link"]
    names = [link for link in solution.verification.links if "/nic" in link]
    even = {"proof": "dual", "any_copies": True, "bound": 0.0, "weights": {name: 1 / len(names) for name in names}}
    assert broken(**even) == []


@pytest.mark.parametrize(("receive", "rules"), [("shared", []), ("source-rail", []), ("destination-gpu", ["z"])])
def test_trading_gpus_within_a_node_is_seen_where_gpus_receive(receive: str, rules: list[str]) -> None:
    # Experts 0 and 3 on GPU 0, 1 and 2 on GPU 1; then 0 meets 1, and GPU 0 receives 170 tokens instead of 150.
    instance, traffic = two_nodes(receive, slots=2)
    gpu: list[list[list[int]]] = [[[0], [1], [1], [0]]]
    data = placement_data(instance, gpu, traffic, [])
    check = recomputed(instance, gpu, traffic).layers[0]
    data["layers"] = [{"layer": 0, "z": check.z, "bound": 0.0, "proof": "solver", "worst_link": check.worst_link}]
    assert rules_of(instance, data, traffic) == []
    data["gpu"] = [[[0], [0], [1], [1]]]
    assert rules_of(instance, data, traffic) == rules
    if rules:
        assert check.z == pytest.approx(300)
        assert recomputed(instance, data["gpu"], traffic).layers[0].z == pytest.approx(340)


def test_links_are_named_with_their_bandwidths_and_a_false_one_is_reported() -> None:
    instance, traffic, problem = case("GPU")
    assert "node3/nic1->node3" in problem.links
    placement = solve(instance, traffic, solver="greedy").placement
    kinds = {"links": 8, "gb_per_s": 200.0}
    assert placement.fabric["links"]["node/nic->node"] == placement.fabric["links"]["node->node/nic"] == kinds
    data = placement.model_dump(mode="json", by_alias=True, exclude_none=True)
    data["fabric"]["links"]["node/nic->node"]["gb_per_s"] = 400.0
    assert rules_of(instance, data, traffic) == ["facts"]


@pytest.mark.parametrize("solver", ["contiguous", "eplb", "greedy", "lpt", "trtllm", "topology-swaps", "round-robin"])
def test_engine_rules_place_as_without_nics(solver: str) -> None:
    without = tiny_instance(**changed(BUDGET, TWO_SLOTS))
    with_nics = tiny_instance(**CASES["GPU, budget"])
    traffic = tiny_traffic(without)
    plain, found = (solve(one, traffic, solver=solver) for one in (without, with_nics))
    assert found.placement.gpu == plain.placement.gpu
    assert found.verification.total_z >= plain.verification.total_z


def test_a_budget_that_layers_share_bounds_each_with_all_that_slots_take_of_it() -> None:
    shared = {"placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 60}}}
    instance = tiny_instance(**changed(GPU, TWO_SLOTS, shared))
    traffic = tiny_traffic(instance, 6)
    solution = solve(instance, traffic, limits=Limits(time_s=10, work=0.05))
    assert solution.verification.ok
    assert 0 < solution.bound <= solution.objective * (1 + 1e-9)


@pytest.mark.parametrize("solver", ["auto", "cpsat", "mip"])
def test_solvers_count_nics(solver: str) -> None:
    instance = tiny_instance(**CASES["GPU, two slots"])
    traffic = tiny_traffic(instance, 3)
    found = solve(instance, traffic, solver=solver, limits=Limits(time_s=20, work=2.0))
    assert found.verification.ok
    assert found.verification.total_z <= min(v for v in found.baselines.values() if isinstance(v, float)) * (1 + 1e-9)
    assert any("/nic" in check.worst_link for check in found.verification.layers)


def test_one_pipe_changes_nothing() -> None:
    plain, shared = tiny_instance(), tiny_instance(cluster=nics("shared"))
    traffic = tiny_traffic(plain)
    one, other = (solve(instance, traffic, limits=Limits(work=1.0)) for instance in (plain, shared))
    assert one.placement.gpu == other.placement.gpu
    assert [r.model_dump() for r in one.placement.layers] == [r.model_dump() for r in other.placement.layers]
    # And an instance without the field has the hash that it always had.
    seed_plan = load_instance(REPO / "instances" / "tiny.yaml")
    assert "nics" in seed_plan.model_dump()["cluster"]
    assert tiny_instance(cluster=nics("shared")).sha256 != plain.sha256


@pytest.mark.parametrize("name", ["GPU", "GPU, per GPU"])
def test_pins_hold(name: str) -> None:
    pin = {"layer": 1, "expert": 2, "replica": 0, "gpu": 3}
    instance = tiny_instance(**changed(CASES[name], {"placement": {"pinned": [pin]}}))
    traffic = tiny_tokens(instance)
    solution = solve(instance, traffic, limits=Limits(time_s=10, work=0.05))
    assert solution.placement.gpu[0][2][0] == 3
    assert solution.verification.ok


def test_memory_that_binds_over_layers_and_the_aggregate_keep_to_their_proofs() -> None:
    # 0.00038 GB is what is resident and one expert, of one of the two layers.
    few = {
        "cluster": {"gpus_per_node": 4, "gpu_memory_gb": dict.fromkeys(range(8), 0.00038), **nics("destination-gpu", 4)}
    }
    for more in (few, {"objective": {"minimise": "aggregate"}}):
        instance = tiny_instance(**changed(GPU, more))
        solution = solve(instance, tiny_traffic(instance), limits=Limits(time_s=10, work=1.0))
        assert solution.verification.ok
        assert 0 < solution.bound <= solution.objective * (1 + 1e-9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cluster": {"nics": {"per_node": 2, "gb_per_s": 100.0}}}, "200 GB/s together"),
        ({"cluster": {"gpus_per_node": 4, **nics("shared", 3)}}, "a divisor or a multiple of cluster.gpus_per"),
        (changed(GPU, {"placement": {"dispatch": "per-node"}}), "destination-gpu, with placement.dispatch: per-node"),
        (changed(GPU, {"parallelism": {"dp": 1, "expert_tp": 2}}), "with parallelism.expert_tp above 1"),
        (changed(GPU, {"placement": {"replicas_apart": "node"}}), "replicas apart by node cannot be solved"),
    ],
)  # fmt: skip
def test_what_contradicts_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        tiny_instance(**changes)
    assert says in str(caught.value)


@pytest.mark.skipif(not all(file.exists() for file in REAL), reason="no real traces; set MOE_PLACER_TRACES")
def test_real_traces_come_within_one_percent_of_their_bounds() -> None:
    base = load_instance(REPO / "instances" / "dsv2-lite-128.yaml").with_traces(REAL)
    traffic = load_traffic(base)
    budget = {"replica_routing": "even", "replicas": {"redundant_slots": 32}}
    for placement in ({}, budget):
        sections = base.model_dump(exclude={"schedule", "engine"})
        changes = {"cluster": nics("destination-gpu", 8), "placement": placement}
        problem = compile_problem(make_instance(**merged(sections, changes)), traffic)
        layer = problem.layer(13)
        task = LayerTask(layer, 0.001, 0.5, np.random.default_rng(0))
        found = Auto().solve_layer(task)
        assert found.bound.proof == ("hot-replicas" if placement else "hot-experts")
        assert found.gap <= 0.01
