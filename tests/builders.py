"""Small instances, traffic and honest placements, for any test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.problem.layer import LayerProblem
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier import LayerCheck, Verification, verify

Ints = npt.NDArray[np.int64]
Gpus = list[list[list[Any]]]  # gpu[l][e] of the placement file

# 4 nodes of 2 GPUs on 2 leaves and 2 spines; layer 0 is dense, layers 1 and 2 are MoE with 4 experts, two replicas
# each: all 8 slots are taken.
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "layers": 3,
        "dense_layers": [0],
        "hidden_size": 64,
        "attention_heads": 4,
        "head_dim": 16,
        "experts": 4,
        "top_k": 2,
        "expert_hidden_size": 32,
        "expert_matrices": 2,
        "vocab_size": 1000,
    },
    "cluster": {
        "nodes": 4,
        "gpus_per_node": 2,
        "gpu": {"memory_gb": 1.0},
        "fabric": {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 2, "oversubscription": 2.0},
    },
    "parallelism": {"dp": 2},
    "placement": {},
    "traffic": {"kind": "load", "tokens_per_gpu": 100.0},
    "objective": {"metric": "time"},
}

MESH = {"kind": "full-mesh"}
# Groups of two routers of one node each; the slower links between groups matter.
DRAGONFLY = {"kind": "dragonfly", "nodes_per_router": 1, "routers_per_group": 2, "global_gb_per_s": 100.0}
# Two pods of two leaves of one node each, or as full as nodes go; and pods of two nodes, with a leaf for each rail.
THREE_LEVELS = {
    "kind": "fat-tree-3", "nodes_per_leaf": 1, "leaves_per_pod": 2, "spines": 2, "cores": 1, "oversubscription": 2.0,
    "pod_oversubscription": 1.5,
}  # fmt: skip
RAILS = {"kind": "rail-pods", "nodes_per_pod": 2, "spines": 2, "oversubscription": 2.0}
ONE_LAYER = {"layers": 1, "dense_layers": []}

# Changes to it that every test of loads and bounds should survive.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mesh": {"cluster": {"fabric": MESH}},
    "spare": {"cluster": {"gpus_per_node": 3}},
    "even": {"placement": {"replica_routing": "even"}},
    "budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 3}}},
    "shared budget": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots_in_all": 6}}},
    "sharded": {"parallelism": {"dp": 1, "expert_tp": 2}},
    "failed": {"cluster": {"gpus_per_node": 3}, "placement": {"failed_gpus": [0, 4]}},
    "two slots": {"placement": {"slots_per_gpu": 2}},
    "one spine": {"cluster": {"nodes": 6, "fabric": {"spines": 1}}},
    "one leaf": {"cluster": {"fabric": {"nodes_per_leaf": 4}}},
    "uneven leaves": {"cluster": {"nodes": 5}, "parallelism": {"dp": 1}},
    "three levels": {"cluster": {"nodes": 6, "fabric": {**THREE_LEVELS, "uplinks": "hashed"}}},
    "rails": {"cluster": {"fabric": RAILS}},
    "NVLink domains": {"cluster": {"nodes": 6, "nvlink_domain_nodes": 2, "fabric": {"nodes_per_leaf": 3}}},
    "dragonfly": {"cluster": {"nodes": 6, "fabric": DRAGONFLY}},
    "uneven dragonfly": {"cluster": {"nodes": 7, "fabric": {**DRAGONFLY, "global_links": 2}}, "parallelism": {"dp": 1}},
}


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge section by section; a section of another ``kind`` replaces the old one."""
    result = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind") in {None, old.get("kind")}:
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def tiny_instance(**changes: Any) -> Instance:
    """Build the tiny instance, with sections merged in: ``tiny_instance(cluster={"gpus_per_node": 3})``.

    Its traffic is of expert loads, or of traces where a unit of dispatch other than per-expert asks for these.
    """
    if changes.get("placement", {}).get("dispatch", "per-expert") != "per-expert":
        changes = {"traffic": {"kind": "trace", "tokens_per_gpu": 100.0}, **changes}
    return Instance.model_validate(merged(TINY, changes))


def tiny_traffic(instance: Instance, seed: int = 0, recordings: int = 2) -> Traffic:
    """Draw skewed loads of some recordings, and an uneven mix of them on every node."""
    rng = np.random.default_rng(seed)
    shape = (len(instance.moe_layers), instance.model.experts)
    drawn = []
    for index in range(recordings):
        load = rng.gamma(0.7, 100.0, shape) + 1.0
        drawn.append(Recording(f"drawn-{index}", load, load.sum(axis=1) / instance.model.top_k))
    return Traffic(tuple(drawn), rng.dirichlet(np.ones(recordings), instance.cluster.nodes))


def tiny_tokens(instance: Instance, seed: int = 0, tokens: tuple[int, ...] = (17, 40)) -> Traffic:
    """Draw recordings of so many tokens each, every one with its set of experts, and an uneven mix on every node."""
    rng = np.random.default_rng(seed)
    layers, experts = len(instance.moe_layers), instance.model.experts
    drawn = []
    for index, count in enumerate(tokens):
        keys = rng.exponential(rng.gamma(0.7, 1.0, (layers, experts)) + 0.05, (count, layers, experts))
        topk = np.argsort(-keys, axis=2)[:, :, : instance.model.top_k].astype(np.uint8)
        load = np.stack([np.bincount(topk[:, layer].ravel(), minlength=experts) for layer in range(layers)])
        drawn.append(Recording(f"tokens-{index}", load.astype(np.float64), np.full(layers, float(count)), topk))
    return Traffic(tuple(drawn), rng.dirichlet(np.ones(len(tokens)), instance.cluster.nodes))


@cache
def _within_slots(slots: tuple[int, ...], items: int) -> Ints:
    """List every assignment of items to nodes that fills no node beyond its slots [assignments, items]."""
    nodes = len(slots)
    every = np.array(list(product(range(nodes), repeat=items)))
    filled = (every[:, :, None] == np.arange(nodes)).sum(axis=1)
    return every[(filled <= slots).all(axis=1)]


def every_valid(layer: LayerProblem) -> list[Ints]:
    """Return every valid assignment of a tiny layer's items to nodes."""
    return [node for node in _within_slots(tuple(layer.slots.tolist()), layer.items) if layer.valid(node)]


def smallest_z(layer: LayerProblem) -> float:
    """Try every assignment of a tiny layer's items to nodes."""
    return min(layer.z(node) for node in every_valid(layer))


def assert_near(found: Any, expected: Any, rel: float = 1e-6, least: float = 1e-12) -> None:
    """Hold arrays to each other as `pytest.approx` does, which looks at number after number."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    off = ~(np.abs(found - expected) <= np.maximum(rel * np.abs(expected), least))
    assert not off.any(), (np.argwhere(off)[:5], found[off][:5], expected[off][:5])


def level_traffic(instance: Instance, load: Sequence[Sequence[float]], tokens: float) -> Traffic:
    """Give every node the same loads [MoE layers][experts], of so many tokens."""
    table = np.array(load, dtype=np.float64)
    recording = Recording("level", table, np.full(len(table), tokens))
    return Traffic((recording,), np.ones((instance.cluster.nodes, 1)))


def in_order(instance: Instance) -> Gpus:
    """Place experts in the order of GPUs that work: first all first replicas, then all second ones, and so on."""
    cluster, tp = instance.cluster, instance.parallelism.expert_tp
    places: list[list[int]] = []
    for node in range(cluster.nodes):
        ids = range(node * cluster.gpus_per_node, (node + 1) * cluster.gpus_per_node)
        working = [gpu for gpu in ids if gpu not in instance.placement.failed_gpus]
        places += [working[at : at + tp] for at in range(0, len(working) - tp + 1, tp)]
    experts = instance.model.experts
    row: list[list[Any]] = [[] for _ in range(experts)]
    for item in range(instance.replicas_per_layer):
        place = places[item % len(places)]
        row[item % experts].append(place if tp > 1 else place[0])
    return [[list(replicas) for replicas in row] for _ in instance.moe_layers]


def placement_data(instance: Instance, gpu: Gpus, traffic: Traffic, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Put a placement file's content together."""
    return {
        "schema": "moe-placer/placement/1",
        "instance": {"name": instance.name, "sha256": instance.sha256, "traffic_sha256": traffic.sha256},
        "solver": {"name": "by-hand", "version": "0", "seed": 0},
        "gpu": gpu,
        "layers": records,
    }


def recomputed(instance: Instance, gpu: Gpus, traffic: Traffic, **claims: Any) -> Verification:
    """Verify a placement that states ``claims`` of every layer."""
    stated = {"z": 0.0, "bound": 0.0, "proof": "solver", **claims}
    records = [{"layer": layer, **stated} for layer in instance.moe_layers]
    return verify(instance, Placement.model_validate(placement_data(instance, gpu, traffic, records)), traffic)


def proof_claims(links: Sequence[str], proof: str) -> dict[str, Any]:
    """Return what a record carries for a proof: equal weights, a low threshold, the first replica."""
    claims: dict[str, Any] = {"proof": proof}
    if proof in {"dual", "threshold"}:
        claims["weights"] = {link: 1 / len(links) for link in links}
    if proof == "threshold":
        claims["threshold"] = 50.0
    if proof == "hot-experts":
        claims["hot"] = (0, 0)
    return claims


def honest(instance: Instance, traffic: Traffic, gpu: Gpus | None = None, proof: str = "dual") -> dict[str, Any]:
    """Build a placement file's content whose figures are what `verify` recomputes."""
    gpu = in_order(instance) if gpu is None else gpu
    claims = proof_claims(recomputed(instance, gpu, traffic).links, proof)
    records = []
    for check in recomputed(instance, gpu, traffic, **claims).layers:
        record = {"layer": check.layer, "z": check.z, "bound": check.bound, "worst_link": check.worst_link, **claims}
        if check.bound_given_replicas is not None:
            record["bound_given_replicas"] = check.bound_given_replicas
        records.append(record)
    return placement_data(instance, gpu, traffic, records)


def proved(check: LayerCheck) -> float:
    """Return what a layer's proof gives, for the instance or for the replicas as placed."""
    return check.bound if check.bound_given_replicas is None else check.bound_given_replicas


def rules_of(instance: Instance, data: dict[str, Any], traffic: Traffic) -> list[str]:
    """Name the rules that a placement file's content breaks, each once."""
    violations = verify(instance, Placement.model_validate(data), traffic).violations
    return sorted({violation.rule for violation in violations})
