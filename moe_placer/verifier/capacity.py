"""How many experts GPUs and nodes can hold: what slots, memory and failed GPUs leave."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import Dtype, Model
from moe_placer.verifier.model_sizes import BYTES_PER_VALUE, precision_of, resident_bytes

__all__ = [
    "GB",
    "fits_memory",
    "gpu_slots",
    "memory_of",
    "node_memory_slots",
    "node_slots",
    "sizes",
    "wire_bytes",
]

Ints = npt.NDArray[np.int64]

GB = 1e9
ROUNDING = 1e-9


def sizes(instance: Instance) -> tuple[float, float]:
    """Bytes of what is resident on a working GPU, and of one expert (or its shard)."""
    model = instance.model
    resident = resident_bytes(instance) + instance.placement.kv_cache_gb * GB
    values = model.expert_matrices * model.hidden_size * model.expert_hidden_size
    size = values * BYTES_PER_VALUE[precision_of(model, "experts")]
    return resident, size / instance.parallelism.expert_tp


def wire_bytes(model: Model, dtype: Dtype | None) -> float:
    """Bytes of one token between nodes: its values, and beside fp8 4 for every 128 of them, beside fp4 1 for every 16.

    Without a ``dtype`` of its own it has the model's, and no scales.
    """
    values = model.hidden_size * BYTES_PER_VALUE[dtype or model.dtype]
    if dtype == "fp8":
        return values + 4.0 * math.ceil(model.hidden_size / 128)
    return values + (math.ceil(model.hidden_size / 16) if dtype == "fp4" else 0.0)


def memory_of(instance: Instance, gpu: int) -> float:
    """Memory of a GPU in GB."""
    return instance.cluster.gpu_memory_gb.get(gpu, instance.cluster.gpu.memory_gb)


def fits_memory(instance: Instance, gpu: int, used: float) -> bool:
    """Whether a GPU's memory holds so many bytes."""
    return used <= memory_of(instance, gpu) * GB * (1 + ROUNDING)


def gpu_slots(instance: Instance) -> Ints:
    """Replicas (or shards) of one layer that each GPU can hold [GPUs]: its slots, as far as its memory goes."""
    failed, most = set(instance.placement.failed_gpus), instance.placement.slots_per_gpu
    slots = (0 if gpu in failed else min(most, held) for gpu, held in enumerate(_gpu_memory_slots(instance)))
    return np.array([*slots], dtype=np.int64)


def node_slots(instance: Instance) -> Ints:
    """Replicas of one layer that each node can hold [nodes]."""
    return _by_node(instance, gpu_slots(instance).tolist())


def node_memory_slots(instance: Instance) -> Ints:
    """Replicas that each node can hold over all MoE layers [nodes], by rules ``memory``, ``slots`` and ``failed``."""
    return _by_node(instance, _gpu_memory_slots(instance))


def _by_node(instance: Instance, of_gpu: list[int]) -> Ints:
    """Most replicas on each node whose working GPUs hold so many shards each."""
    failed, per_node = set(instance.placement.failed_gpus), instance.cluster.gpus_per_node
    nodes = (range(first, first + per_node) for first in range(0, instance.gpus, per_node))
    working = [[of_gpu[gpu] for gpu in gpus if gpu not in failed] for gpus in nodes]
    return np.array([_most_replicas(held, instance.parallelism.expert_tp) for held in working], dtype=np.int64)


def _most_replicas(held: list[int], shards: int) -> int:
    """Most replicas whose shards are on different GPUs that hold so many: m where sum of min(held, m) is m * shards."""
    most = sum(held) // shards
    while (fewer := sum(min(one, most) for one in held) // shards) < most:
        most = fewer
    return most


def _gpu_memory_slots(instance: Instance) -> list[int]:
    """Shards that each GPU can take over all layers: the most that rule ``memory`` accepts, as far as slots go."""
    resident, expert = sizes(instance)
    slots, of_memory = instance.placement.slots_per_gpu * len(instance.moe_layers), {}
    for gpu in range(instance.gpus):
        memory = memory_of(instance, gpu)
        if memory not in of_memory:
            held = max(0, math.floor((memory * GB * (1 + ROUNDING) - resident) / expert) - 1)
            while fits_memory(instance, gpu, resident + (held + 1) * expert):  # what the rule accepts, to the last bit
                held += 1
            of_memory[memory] = min(held, slots)
    return [of_memory[memory_of(instance, gpu)] for gpu in range(instance.gpus)]
