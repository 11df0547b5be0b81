"""For each rule, the smallest change to a good placement that must be reported, and only that."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from builders import (
    Gpus,
    honest,
    in_order,
    recomputed,
    rules_of,
    tiny_instance,
    tiny_traffic,
)

from moe_placer.placement import Placement
from moe_placer.verifier import RULES, verify


def _set(*path: Any, to: Any) -> Any:
    """Return a mutation that replaces one value."""

    def mutate(data: dict[str, Any]) -> None:
        here: Any = data
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = to(here[path[-1]]) if callable(to) else to

    return mutate


def _drop(*path: Any) -> Any:
    def mutate(data: dict[str, Any]) -> None:
        here: Any = data
        for key in path[:-1]:
            here = here[key]
        del here[path[-1]]

    return mutate


def _swap_experts(data: dict[str, Any]) -> None:
    """Swap experts 0 and 1 of the first MoE layer, whose first replicas are on one node."""
    first, second = data["gpu"][0][0], data["gpu"][0][1]
    first[0], second[0] = second[0], first[0]


def _swap_records(data: dict[str, Any]) -> None:
    first, second = data["layers"]
    first["layer"], second["layer"] = second["layer"], first["layer"]


def _shift_replica(data: dict[str, Any]) -> None:
    """Take the only replica of the last expert, and give it to the first: the total stays."""
    data["gpu"][0][0].append(data["gpu"][0][3].pop())


def _rename_weight(data: dict[str, Any]) -> None:
    weights = data["layers"][0]["weights"]
    weights["node0->leaf9"] = weights.pop("node0->leaf0")


SPARE: dict[str, Any] = {"cluster": {"gpus_per_node": 3}}  # in_order fills from the front: GPUs 8 to 11 are free
SPARE_FAILED: dict[str, Any] = {"cluster": {"gpus_per_node": 3}, "placement": {"failed_gpus": [2]}}
SMALL_FAILED: dict[str, Any] = {
    "cluster": {"gpus_per_node": 3, "gpu_memory_gb": {2: 1e-9}},
    "placement": {"failed_gpus": [2]},
}
SHARDED: dict[str, Any] = {"cluster": {"gpus_per_node": 3}, "parallelism": {"dp": 1, "expert_tp": 2}}
SHARDED_ROOMY: dict[str, Any] = {**SHARDED, "placement": {"slots_per_gpu": 2}}
PIN = {"layer": 1, "expert": 0, "replica": 0, "gpu": 0}
PINNED: dict[str, Any] = {"placement": {"pinned": [PIN]}}
BUDGET: dict[str, Any] = {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 2}}}
SHARED: dict[str, Any] = {"placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 4}}}
HOT, THRESHOLD, SOLVER = "hot-experts", "threshold", "solver"

MUTATIONS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("instance", {}, "dual", _set("instance", "name", to="other")),
    ("instance", {}, "dual", _set("instance", "sha256", to="0" * 64)),
    ("traffic", {}, "dual", _set("instance", "traffic_sha256", to="0" * 64)),
    ("shape", {}, "dual", _drop("gpu", -1)),
    ("shape", {}, "dual", _drop("layers", -1)),
    ("shape", {}, "dual", _set("layers", to=lambda rows: [*rows, rows[-1]])),
    ("shape", {}, "dual", _set("gpu", to=lambda rows: [*rows, rows[-1]])),
    ("shape", {}, "dual", _drop("gpu", 0, -1)),
    ("shape", {}, "dual", _set("gpu", 0, to=lambda row: [*row, [0, 1]])),
    ("shape", {}, "dual", _set("layers", 1, "layer", to=0)),
    ("shape", {}, "dual", _swap_records),
    ("replicas", {}, "dual", _drop("gpu", 0, 2, -1)),
    ("replicas", {}, "dual", _set("gpu", 0, 2, to=[])),
    ("replicas", SPARE, "dual", _set("gpu", 0, 2, to=lambda replicas: [*replicas, 9])),
    ("replicas", BUDGET, "dual", _drop("gpu", 0, 0, -1)),
    ("replicas", BUDGET, "dual", _set("gpu", 0, 0, to=lambda replicas: [*replicas, 7])),
    ("replicas", BUDGET, "dual", _shift_replica),
    ("replicas", SHARED, "dual", _set("gpu", 0, 0, to=lambda replicas: [*replicas, 7])),
    ("shards", SHARDED, "dual", _set("gpu", 0, 0, 0, to=[0])),
    ("shards", SHARDED, "dual", _set("gpu", 0, 0, 0, to=[0, 1, 2])),
    ("shards", SHARDED, "dual", _set("gpu", 0, 0, 0, to=[0, 5])),
    ("shards", SHARDED_ROOMY, "dual", _set("gpu", 0, 0, 0, to=[0, 0])),
    ("shards", SHARDED, "dual", _set("gpu", 0, 0, to=[0])),  # flat: one replica on one GPU
    ("shards", {}, "dual", _set("gpu", 0, 0, to=[[], [4]])),
    ("gpu-id", {}, "dual", _set("gpu", 0, 0, 0, to=8)),
    ("gpu-id", {}, "dual", _set("gpu", 0, 0, 0, to=10**30)),
    ("slots", {}, "dual", _set("gpu", 0, 1, 0, to=0)),
    ("failed", SPARE_FAILED, "dual", _set("gpu", 0, 0, 0, to=2)),
    ("failed", SMALL_FAILED, "dual", _set("gpu", 0, 0, 0, to=2)),
    ("pinned", PINNED, "dual", _swap_experts),
    ("z", {}, "dual", _set("layers", 0, "z", to=lambda z: z * (1 + 2e-6))),
    ("z", {}, "dual", _set("layers", 0, "z", to=lambda z: z * (1 - 2e-6))),
    ("worst-link", {}, "dual", _set("layers", 0, "worst_link", to="leaf0->node0")),
    ("worst-link", {}, "dual", _set("layers", 0, "worst_link", to="leaf0->node9")),
    ("worst-link", {}, "dual", _set("layers", 0, "worst_link", to="")),
    ("weights", {}, "dual", _drop("layers", 0, "weights")),
    ("weights", {}, THRESHOLD, _drop("layers", 0, "weights")),
    ("weights", {}, "dual", _rename_weight),
    ("weights", {}, "dual", _set("layers", 0, "weights", "node0->leaf0", to=lambda weight: weight + 2e-6)),
    ("weights", {}, "dual", _drop("layers", 0, "weights", "node0->leaf0")),
    ("weights", {}, "dual", _set("layers", 0, "weights", to={})),
    ("weights", {}, HOT, _set("layers", 0, "weights", to={"node0->leaf0": 1.0})),
    ("weights", {}, SOLVER, _set("layers", 0, "weights", to={"node0->leaf0": 1.0})),
    ("proof", {}, THRESHOLD, _drop("layers", 0, "threshold")),
    ("proof", {}, HOT, _drop("layers", 0, "hot")),
    ("proof", {}, HOT, _set("layers", 0, "hot", to=(4, 0))),
    ("proof", {}, HOT, _set("layers", 0, "hot", to=(0, 2))),
    ("proof", {}, HOT, _set("layers", 0, "hot", to=(-1, 0))),
    ("proof", {}, HOT, _set("layers", 0, "hot", to=(10**4400, 10**4400))),
    ("bound", {}, "dual", _set("layers", 0, "bound", to=lambda bound: bound * (1 + 1e-8))),
    ("bound", {}, THRESHOLD, _set("layers", 0, "bound", to=lambda bound: bound * (1 + 1e-8))),
    ("bound", {}, HOT, _set("layers", 0, "bound", to=lambda bound: bound * (1 + 1e-8))),
    ("solver-bound", {}, "dual", _set("layers", 0, "solver_bound", to=1e6)),
    ("solver-bound", {}, "dual", _set("layers", 0, "solver_bound", to=0.0)),
]


@pytest.mark.parametrize(("rule", "variant", "proof", "mutate"), MUTATIONS)
def test_a_mutation_is_reported_and_only_that(rule: str, variant: dict[str, Any], proof: str, mutate: Any) -> None:
    instance = tiny_instance(**variant)
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic, proof=proof)
    assert rules_of(instance, data, traffic) == []
    broken = copy.deepcopy(data)
    mutate(broken)
    assert broken != data
    assert rules_of(instance, broken, traffic) == [rule]


def test_every_rule_has_a_mutation() -> None:
    # Below, and in tests of these.
    elsewhere = {"memory", "apart", "survives", "aggregate", "contradiction", "facts", "layer-time"}
    elsewhere |= {"current", "moves", "migration"}
    assert {rule for rule, *_ in MUTATIONS} | elsewhere == set(RULES)
    assert len(set(RULES)) == len(RULES)


def test_memory_of_all_layers_is_counted() -> None:
    # Resident: (3 * 4 * 64 * 64 + 2 * 64 * 64 + 2 * 1000 * 64) * 2 bytes = 370,688; an expert: 2 * 64 * 32 * 2 = 8,192.
    # GPU 2, the spare one of node 0, has room for one expert, exactly, but each of two layers puts one there.
    memory = (370_688 + 8_192) / 1e9
    instance = tiny_instance(cluster={"gpus_per_node": 3, "gpu_memory_gb": {2: memory}})
    traffic = tiny_traffic(instance)
    gpu = [[[0, 4], [1, 5], [3, 6], [7, 8]] for _ in range(2)]
    gpu[0][0][0] = 2
    assert rules_of(instance, honest(instance, traffic, gpu), traffic) == []
    gpu[1][0][0] = 2
    found = verify(instance, Placement.model_validate(honest(instance, traffic, gpu)), traffic)
    assert [(violation.rule, violation.gpu) for violation in found.violations] == [("memory", 2)]


def test_the_kv_cache_counts() -> None:
    for kv_cache, rules in ((0.999, []), (1.0, ["memory"])):
        instance = tiny_instance(placement={"kv_cache_gb": kv_cache})
        traffic = tiny_traffic(instance)
        assert rules_of(instance, honest(instance, traffic), traffic) == rules


def test_replicas_of_one_expert_do_not_share_a_gpu() -> None:
    instance = tiny_instance(placement={"slots_per_gpu": 2})
    traffic = tiny_traffic(instance)
    gpu = in_order(instance)
    gpu[0][0] = [0, 1]
    gpu[0][1] = [1, 4]
    assert rules_of(instance, honest(instance, traffic, gpu), traffic) == []
    gpu[0][0] = [0, 0]
    assert rules_of(instance, honest(instance, traffic, gpu), traffic) == ["apart"]
    lenient = tiny_instance(placement={"slots_per_gpu": 2, "replicas_apart": "none"})
    assert rules_of(lenient, honest(lenient, traffic, gpu), traffic) == []


def test_replicas_of_one_expert_do_not_share_a_node_where_the_instance_asks() -> None:
    for apart, rules in (("gpu", []), ("node", ["apart"])):
        instance = tiny_instance(placement={"replicas_apart": apart})
        traffic = tiny_traffic(instance)
        gpu = in_order(instance)
        gpu[1] = [[0, 1], [2, 3], [4, 5], [6, 7]]
        found = verify(instance, Placement.model_validate(honest(instance, traffic, gpu)), traffic)
        assert sorted({violation.rule for violation in found.violations}) == rules
        assert all("on node 0 like replica 0, required are different nodes" in str(v) for v in found.violations[:1])
        assert rules_of(instance, honest(instance, traffic), traffic) == []


def test_sharded_replicas_do_not_share_a_gpu() -> None:
    instance = tiny_instance(
        model={"experts": 2},
        cluster={"gpus_per_node": 3},
        parallelism={"dp": 2, "expert_tp": 2},
        placement={"slots_per_gpu": 2},
    )
    traffic = tiny_traffic(instance)
    gpu: Gpus = [[[[0, 1], [3, 4]], [[6, 7], [9, 10]]] for _ in range(2)]
    assert rules_of(instance, honest(instance, traffic, gpu), traffic) == []
    gpu[0][0] = [[0, 1], [1, 2]]
    assert rules_of(instance, honest(instance, traffic, gpu), traffic) == ["apart"]


def test_negative_weights_are_refused() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    good = Placement.model_validate(honest(instance, traffic))
    weights = {"node0->leaf0": 2.0, "leaf0->node0": -1.0}
    records = tuple(record.model_copy(update={"weights": weights, "bound": 0.0}) for record in good.layers)
    found = verify(instance, good.model_copy(update={"layers": records}), traffic)
    assert {violation.rule for violation in found.violations} == {"weights"}


def test_a_solver_bound_above_z_is_refused() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic, proof="solver")
    data["layers"][0]["bound"] = data["layers"][0]["z"]
    assert rules_of(instance, data, traffic) == []
    data["layers"][0]["bound"] *= 1 + 1e-8
    assert rules_of(instance, data, traffic) == ["bound"]


def test_rounding_is_tolerated() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    record = data["layers"][0]
    record["z"] *= 1 + 5e-7
    record["bound"] *= 1 + 1e-11
    record["solver_bound"] = record["bound"] * (1 - 1e-11)
    assert rules_of(instance, data, traffic) == []


def test_weights_that_sum_to_more_than_one_prove_no_more() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    weights = data["layers"][0]["weights"]
    data["layers"][0]["weights"] = {link: weight * (1 + 9e-7) for link, weight in weights.items()}
    assert rules_of(instance, data, traffic) == []
    data["layers"][0]["bound"] *= 1 + 9e-7
    assert rules_of(instance, data, traffic) == ["bound"]


def test_a_violation_says_where_and_what() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    data["gpu"][0][1][0] = 8
    (violation,) = verify(instance, Placement.model_validate(data), traffic).violations
    assert (violation.layer, violation.expert, violation.replica, violation.gpu) == (1, 1, 0, None)
    text = "[gpu-id] layer 1, expert 1, replica 0: on GPU 8, required is an id below 8"
    assert str(violation) == text


def test_a_broken_layer_leaves_the_others_computed() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    gpu = in_order(instance)
    good = recomputed(instance, gpu, traffic)
    gpu[0][0][0] = 99
    found = recomputed(instance, gpu, traffic)
    assert found.load.shape == good.load.shape
    assert not found.load[0].any()
    np.testing.assert_array_equal(found.load[1], good.load[1])
    assert [check.layer for check in found.layers] == [1, 2]
    assert found.layers[0].z == 0
    assert found.layers[1] == good.layers[1]
