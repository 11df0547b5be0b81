"""Instances, traffic and contiguous placements for DAGs, among them the awkward ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from builders import tiny_tokens

from moe_placer.instance import Instance, load_instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Recording, Traffic

Example = tuple[Instance, Placement, Traffic]
Written = Callable[[str, str], tuple[Path, ...]]  # the files of an example's view

REFERENCE = Path(__file__).parent.parent / "instances" / "h100-128.yaml"

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {
        "layers": 4,
        "dense_layers": [0],
        "hidden_size": 64,
        "attention_heads": 4,
        "head_dim": 16,
        "experts": 4,
        "top_k": 2,
        "expert_hidden_size": 32,
        "vocab_size": 1000,
    },
    "cluster": {
        "nodes": 4,
        "gpus_per_node": 2,
        "gpu": {"memory_gb": 1.0},
        "fabric": {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 2, "oversubscription": 2.0},
    },
    "parallelism": {"dp": 2, "attention_tp": 2},
    "placement": {},
    "traffic": {"kind": "load", "tokens_per_gpu": 100.0},
}
TRACE = {"kind": "trace"}  # with every token's choice
FULL_MESH = {"fabric": {"kind": "full-mesh"}}

# Name to what differs from SMALL, section by section.
VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "full-mesh": {"cluster": FULL_MESH},
    "one-node": {"cluster": {"nodes": 1, "gpus_per_node": 8, **FULL_MESH}, "parallelism": {"dp": 1, "attention_tp": 8}},
    "one-gpu": {
        "cluster": {"nodes": 1, "gpus_per_node": 1, **FULL_MESH},
        "parallelism": {"dp": 1, "attention_tp": 1},
        "placement": {"slots_per_gpu": 4},
    },
    "no-dense-layers": {"model": {"dense_layers": []}},
    "one-expert": {"model": {"experts": 1, "top_k": 1}},
    "no-tensor-parallelism": {"parallelism": {"attention_tp": 1}},
    "tensor-parallel-over-nodes": {
        "model": {"attention": {"kind": "gqa", "kv_heads": 2}, "shared_expert_hidden_size": 16, "expert_matrices": 3},
        "parallelism": {"attention_tp": 4},
    },
    "uneven-tensor-parallelism": {"parallelism": {"attention_tp": 3}},
    "sharded-experts": {"parallelism": {"expert_tp": 2, "dp": 1}},
    "redundant": {
        "parallelism": {"dp": 1},
        "placement": {"replicas": {"redundant_slots": 2}, "replica_routing": "even"},
    },
    "failed-gpu": {"parallelism": {"dp": 1}, "placement": {"failed_gpus": [5]}},
    "failed-node": {"parallelism": {"dp": 1}, "placement": {"failed_gpus": [0, 1], "slots_per_gpu": 2}},
    "failed-group": {"parallelism": {"dp": 1, "attention_tp": 1}, "placement": {"failed_gpus": [1, 2]}},
    "failed-in-every-group": {"parallelism": {"dp": 1}, "placement": {"failed_gpus": [0, 3, 5], "slots_per_gpu": 2}},
    "failed-group-over-nodes": {
        "parallelism": {"dp": 1, "attention_tp": 3},
        "placement": {"failed_gpus": [2, 4, 5], "slots_per_gpu": 2},
    },
    "fractions": {"traffic": {"tokens_per_gpu": 0.37}},
    "many-groups": {"cluster": {"nodes": 6}, "parallelism": {"dp": 6}, "placement": {"slots_per_gpu": 2}},
    "latent-attention-and-dense-between": {
        "model": {
            "dense_layers": [2],
            "attention": {"kind": "mla", "kv_lora_rank": 24, "qk_rope_head_dim": 8, "q_lora_rank": 40},
            "shared_expert_hidden_size": 48,
            "dense_hidden_size": 80,
            "dense_matrices": 3,
            "dtype": "fp8",
            "dtypes": {"scores": "bf16", "kv_cache": "bf16", "gate": "fp32", "head": "bf16", "activations": "bf16"},
        },
        "cluster": {"gpu": {"memory_gb": 1.0, "dtype_tflops": {"bf16": 300.0, "fp8": 500.0}}},
        "placement": {"dispatch_dtype": "fp8", "combine_dtype": "bf16"},
    },
    "latent-attention-without-query-latents": {
        "model": {"attention": {"kind": "mla", "kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12}},
        "parallelism": {"attention_tp": 1},
    },
    "once-per-node": {
        "parallelism": {"attention_tp": 1},
        "placement": {"dispatch": "per-node", "dispatch_dtype": "fp8", "combine_dtype": "bf16"},
        "traffic": TRACE,
    },
    "once-per-node-even": {
        "parallelism": {"dp": 1, "attention_tp": 4},
        "placement": {
            "dispatch": "per-node",
            "replicas": {"redundant_slots": 2},
            "replica_routing": "even",
            "failed_gpus": [5],
        },
        "traffic": TRACE,
    },
    "once-per-gpu": {
        "model": {"experts": 8, "top_k": 3},
        "cluster": {"nodes": 2},
        "parallelism": {"dp": 1},
        "placement": {"dispatch": "per-gpu", "slots_per_gpu": 2},
        "traffic": TRACE,
    },
    "nvlink-domains": {"cluster": {"nodes": 4, "nvlink_domain_nodes": 2}, "parallelism": {"dp": 1, "attention_tp": 3}},
    # Small, for a whole parser of DOT reads it, which is slow.
    "special-characters": {
        "name": "a<b>&\"c\"'d'{|}; ü→ ]]>--%",
        "model": {"layers": 2},
        "cluster": {"nodes": 2, "fabric": {"kind": "fat-tree", "nodes_per_leaf": 1, "spines": 2}},
    },
}


def _merged(changes: dict[str, Any]) -> dict[str, Any]:
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    for key, value in changes.items():
        merged[key] = {**merged[key], **value} if isinstance(value, dict) else value
    return merged


def example(name: str = "small") -> Example:
    """Build one of the variants, with skewed traffic and experts in the order of the GPUs that work."""
    instance = Instance.model_validate(_merged(VARIANTS[name]))
    return instance, contiguous(instance), drawn_traffic(instance)


def reference() -> Example:
    """Build the reference deployment: 61 layers on 128 GPUs."""
    instance = load_instance(REFERENCE)
    return instance, contiguous(instance), drawn_traffic(instance)


def drawn_traffic(instance: Instance, seed: int = 0) -> Traffic:
    """Draw skewed loads of two domains, in which every token chooses top_k experts, and a mix for every node.

    Where tokens are sent once for several experts, the choice of every token is drawn.
    """
    if instance.placement.counts_tokens_once:
        return tiny_tokens(instance, seed)
    rng = np.random.default_rng(seed)
    shape = (len(instance.moe_layers), instance.model.experts)
    loads = [rng.gamma(0.7, 100.0, shape) + 1.0 for _ in range(2)]
    recordings = tuple(
        Recording(f"d{i}", load, load.sum(axis=1) / instance.model.top_k) for i, load in enumerate(loads)
    )
    return Traffic(recordings, rng.dirichlet(np.ones(2), instance.cluster.nodes))


def contiguous(instance: Instance) -> Placement:
    """Put replica r of expert e on place r*E+e, where places are the GPUs that work, or runs of them within a node."""
    tp, per_node = instance.parallelism.expert_tp, instance.cluster.gpus_per_node
    working = [gpu for gpu in range(instance.gpus) if gpu not in instance.placement.failed_gpus]
    places = [tuple(working[i : i + tp]) for i in range(0, len(working) - tp + 1, tp)]
    assert all(place[0] // per_node == place[-1] // per_node for place in places)
    experts = instance.model.experts
    row: list[list[Any]] = [[] for _ in range(experts)]
    for item in range(instance.replicas_per_layer):
        place = places[item % len(places)]
        row[item % experts].append(list(place) if tp > 1 else place[0])
    return placement_of(instance, [row] * len(instance.moe_layers))


def placement_of(instance: Instance, gpu: list[list[list[Any]]]) -> Placement:
    """Wrap GPU ids as a placement file would state them."""
    content = {
        "schema": "moe-placer/placement/1",
        "instance": {"name": instance.name, "sha256": "0", "traffic_sha256": "0"},
        "solver": {"name": "by-hand", "version": "0", "seed": 0},
        "gpu": gpu,
        "layers": [],
    }
    return Placement.model_validate(content)
