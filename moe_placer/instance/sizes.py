"""What an instance's shapes come to in bytes: of one expert, one token, and of everything resident on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moe_placer.instance.instance import Instance
from moe_placer.instance.model_parts import (
    BYTES_PER_VALUE,
    attention_weights,
    dense_weights,
    expert_weights,
    part_bytes,
    peak_tflops,
    shared_weights,
)

__all__ = [
    "BYTES_PER_VALUE",
    "GB",
    "SCALES",
    "MemoryParts",
    "Wire",
    "back_ratio",
    "combine_wire",
    "dispatch_wire",
    "expert_bytes",
    "expert_us",
    "gpu_memory_bytes",
    "memory_parts",
    "shards_that_fit",
    "token_bytes",
    "token_us",
]

GB = 1e9

# Values that share a scale on the wire, and its bytes: a float32 for 128 values of fp8 (DeepEP, DeepGEMM), a byte of
# fp8 for 16 of fp4 (NVFP4).
SCALES = {"fp8": (128, 4.0), "fp4": (16, 1.0)}


@dataclass(frozen=True)
class Wire:
    """The form in which a token travels.

    Attributes
    ----------
    dtype : str
        ``bf16``, or with scales ``fp8+scales``.
    token_bytes : float
        Of one token, its scales included.
    """

    dtype: str
    token_bytes: float


@dataclass(frozen=True)
class MemoryParts:
    """Bytes resident on every GPU, whatever the placement decides.

    Attributes
    ----------
    attention, dense, embeddings : float
        Weights, sharded over ``attention_tp`` GPUs.
    kv_cache : float
        What ``placement.kv_cache_gb`` keeps free.
    """

    attention: float
    dense: float
    embeddings: float
    kv_cache: float

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return self.attention + self.dense + self.embeddings + self.kv_cache


def token_bytes(instance: Instance) -> float:
    """Bytes of one token in the model's precision: hidden_size values."""
    return instance.model.hidden_size * BYTES_PER_VALUE[instance.model.dtype]


def dispatch_wire(instance: Instance) -> Wire:
    """Return the form in which a token goes to its experts."""
    return _wire(instance, instance.placement.dispatch_dtype)


def combine_wire(instance: Instance) -> Wire:
    """Return the form in which a result comes back."""
    return _wire(instance, instance.placement.combine_dtype)


def _wire(instance: Instance, dtype: str | None) -> Wire:
    if dtype is None:
        return Wire(instance.model.dtype, token_bytes(instance))
    values, width = instance.model.hidden_size, BYTES_PER_VALUE[dtype]
    if dtype not in SCALES:
        return Wire(dtype, values * width)
    each, size = SCALES[dtype]
    return Wire(f"{dtype}+scales", values * width + -(-values // each) * size)


def expert_bytes(instance: Instance) -> float:
    """Bytes that one replica of an expert takes on each GPU that holds it (a 1/expert_tp share of its matrices)."""
    model = instance.model
    return expert_weights(model) * part_bytes(model, "experts") / instance.parallelism.expert_tp


def expert_us(instance: Instance, tokens: float) -> float:
    """Microseconds of one expert's matrices over so many tokens: 2 FLOPs per weight and token, at the GPU's MFU."""
    flops = 2 * expert_weights(instance.model) * tokens
    reached = peak_tflops(instance, "experts") * 1e12 * instance.cluster.gpu.mfu
    return 1e6 * flops / instance.parallelism.expert_tp / reached


def token_us(instance: Instance) -> float:
    """Microseconds of one token on a node's link, on its way to an expert."""
    fabric = instance.cluster.fabric
    return 1e6 * dispatch_wire(instance).token_bytes / (fabric.node_gb_per_s * GB * fabric.link_utilization)


def back_ratio(instance: Instance) -> float:
    """How many times the bytes of a token its result has on the way back: combine over dispatch."""
    return combine_wire(instance).token_bytes / dispatch_wire(instance).token_bytes


def gpu_memory_bytes(instance: Instance, gpu: int) -> float:
    """Memory of one GPU in bytes."""
    cluster = instance.cluster
    return cluster.gpu_memory_gb.get(gpu, cluster.gpu.memory_gb) * GB


def shards_that_fit(instance: Instance, memory_bytes: float) -> int:
    """Return how many experts, or shards of them, fit a GPU's memory; a hair of slack keeps an exact fit."""
    resident, size, memory = memory_parts(instance).total, expert_bytes(instance), memory_bytes * (1 + 1e-9)
    held = max(0, math.floor((memory - resident) / size) - 1)
    while resident + (held + 1) * size <= memory:
        held += 1
    return held


def memory_parts(instance: Instance) -> MemoryParts:
    """Bytes that are resident on every GPU beside the experts.

    Attention: the projections of its kind in every layer. Dense layers: gated or plain MLPs, ``dense_hidden_size``
    wide; beside them the shared experts of MoE layers. Embeddings: the table and the output head. All of it is divided
    evenly over ``attention_tp`` GPUs.
    """
    model, shards = instance.model, instance.parallelism.attention_tp
    dense = len(model.dense_layers) * dense_weights(model) * part_bytes(model, "dense")
    shared = len(instance.moe_layers) * shared_weights(model) * part_bytes(model, "shared")
    return MemoryParts(
        attention=model.layers * attention_weights(model) * part_bytes(model, "attention") / shards,
        dense=(dense + shared) / shards,
        embeddings=2 * model.vocab_size * model.hidden_size * part_bytes(model, "head") / shards,
        kv_cache=instance.placement.kv_cache_gb * GB,
    )
