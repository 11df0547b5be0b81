"""DeepSeek-V3 on nodes of 8 GPUs, as published measurements ran it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Recording, Traffic

__all__ = ["GPUS", "MODEL", "balanced", "contiguous", "deployment", "drawn"]

# As the model's config has it; `init` gives the same (tests/benchmarks/test_fidelity.py).
MODEL: dict[str, Any] = {
    "hidden_size": 7168, "attention_heads": 128, "head_dim": 128, "experts": 256, "top_k": 8,
    "expert_hidden_size": 2048, "expert_matrices": 3, "dense_hidden_size": 18432, "shared_expert_hidden_size": 2048,
    "attention": {
        "kind": "mla", "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128,
    },
    "expert_groups": 8, "top_groups": 4, "vocab_size": 129_280, "dtype": "fp8",
    "dtypes": {"scores": "bf16", "kv_cache": "bf16", "gate": "bf16", "head": "bf16", "activations": "bf16"},
}  # fmt: skip

_HOPPER = {
    "peak_tflops": 1979.0, "dtype_tflops": {"fp8": 1979.0, "bf16": 989.0}, "mfu": 0.6, "memory_gb": 80.0,
    "memory_bandwidth_tb_per_s": 3.35, "memory_utilization": 0.8,
}  # fmt: skip
# The GPU, and what NVLink gives it in one direction: 400 GB/s both ways on an H800, 900 on an H100.
GPUS: Mapping[str, tuple[dict[str, Any], float]] = {
    "H800": ({"name": "H800", **_HOPPER}, 200.0),
    "H100": ({"name": "H100", **_HOPPER}, 450.0),
}


def deployment(
    name: str,
    *,
    nodes: int,
    gpu: str,
    tokens_per_gpu: float,
    layers: int = 61,
    slots: int = 256,
    normal: bool = False,
    traffic: Mapping[str, Any] | None = None,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Instance:
    """Build an instance of DeepSeek-V3 with data-parallel attention on nodes of 8 GPUs.

    Parameters
    ----------
    name : str
        Of the instance.
    nodes : int
    gpu : str
        Of `GPUS`.
    tokens_per_gpu : float
        Tokens that start on each GPU in a step.
    layers : int
        61, or fewer: the first three, and MoE layers behind them; one alone is a MoE layer.
    slots : int
        Experts and redundant replicas of a layer, a multiple of the GPUs.
    normal : bool
        Whether kernels send a token once per node, by its rail, and forward it over NVLink; else once per expert, and
        the NIC of the expert's GPU receives.
    traffic : mapping or None
        Section ``traffic`` beside the tokens; None: kind load.
    changes : mapping or None
        Fields that differ, section by section.
    """
    figures, nvlink = GPUS[gpu]
    nics = {"per_node": 8, "gb_per_s": 50.0, "receive": "source-rail" if normal else "destination-gpu"}
    # One switch that never blocks: NICs are what these measurements were bound by.
    fabric = {
        "kind": "fat-tree", "nodes_per_leaf": nodes, "spines": 1, "node_gb_per_s": 400.0, "link_utilization": 0.9,
    }  # fmt: skip
    content: dict[str, Any] = {
        "name": name,
        "model": {**MODEL, "layers": layers, "dense_layers": [0, 1, 2] if layers > 3 else []},
        "cluster": {
            "nodes": nodes, "gpus_per_node": 8, "gpu": figures, "nvlink_gb_per_s": nvlink, "fabric": fabric,
            "nics": nics,
        },
        "parallelism": {"dp": 1, "attention_tp": 1},
        "placement": {
            "slots_per_gpu": slots // (8 * nodes), "replicas": {"redundant_slots": slots - 256},
            "replica_routing": "even", "dispatch": "per-node" if normal else "per-expert",
            "dispatch_dtype": "fp8", "combine_dtype": "bf16",
        },
        "traffic": {"tokens_per_gpu": tokens_per_gpu, **(traffic or {"kind": "load"})},
        "schedule": {"kernels": {"preset": "deepep"}},
    }  # fmt: skip
    for section, fields in (changes or {}).items():
        content[section] = {**content[section], **fields}
    return Instance.model_validate(content)


def balanced(instance: Instance) -> Traffic:
    """Return loads in which every expert gets as many tokens."""
    layers, experts = len(instance.moe_layers), instance.model.experts
    load = np.full((layers, experts), float(instance.model.top_k))
    recording = Recording("balanced", load, load.sum(axis=1) / instance.model.top_k)
    return Traffic((recording,), np.ones((instance.cluster.nodes, 1)))


def drawn(instance: Instance, groups: int, top: int, tokens: int = 4096) -> Traffic:
    """Return tokens that choose experts at random, from the groups with the best single expert, as DeepEP's tests do.

    Parameters
    ----------
    instance : Instance
    groups, top : int
        Groups of neighbouring experts, and how many of them a token's experts are from.
    tokens : int
        Tokens to draw.
    """
    rng, experts, layers = np.random.default_rng(0), instance.model.experts, len(instance.moe_layers)
    topk = np.empty((tokens, layers, instance.model.top_k), dtype=np.uint16)
    for layer in range(layers):
        keys = rng.random((tokens, groups, experts // groups))
        best = np.argsort(keys.min(axis=2), axis=1)[:, :top]
        others = np.ones((tokens, groups), dtype=bool)
        np.put_along_axis(others, best, False, axis=1)
        keys[others] = np.inf
        chosen = np.argpartition(keys.reshape(tokens, experts), instance.model.top_k, axis=1)
        topk[:, layer] = np.sort(chosen[:, : instance.model.top_k], axis=1)
    load = np.stack([np.bincount(topk[:, layer].ravel(), minlength=experts) for layer in range(layers)])
    recording = Recording("drawn", load.astype(np.float64), np.full(layers, float(tokens)), topk)
    return Traffic((recording,), np.ones((instance.cluster.nodes, 1)))


def contiguous(instance: Instance) -> Placement:
    """Return experts in order, GPU after GPU; what is redundant are second replicas of the first ones."""
    slots, experts = instance.replicas_per_layer, instance.model.experts
    row: list[list[int]] = [[] for _ in range(experts)]
    for slot in range(slots):
        row[slot % experts].append(slot * instance.gpus // slots)
    content = {
        "schema": "moe-placer/placement/1",
        "instance": {"name": instance.name, "sha256": "0", "traffic_sha256": "0"},
        "solver": {"name": "contiguous", "version": "0", "seed": 0},
        "gpu": [row] * len(instance.moe_layers),
        "layers": [],
    }
    return Placement.model_validate(content)
