"""``parallelism.expert_tp: auto``: tensor parallelism inside an expert only where experts do not fit otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_placer.errors import InputError
from moe_placer.instance.instance import Instance
from moe_placer.instance.schema import SharedSlots
from moe_placer.instance.sizes import gpu_memory_bytes, shards_that_fit

__all__ = ["AUTO", "holds_experts", "with_chosen_expert_tp", "with_whole_experts"]

AUTO = "auto"


def with_whole_experts(sections: Any) -> Any:
    """Put 1 in the place of ``parallelism.expert_tp: auto``; what is not that stays."""
    return _with(sections, 1) if _asks(sections) else sections


def with_chosen_expert_tp(sections: Any, instance: Instance) -> Instance:
    """Return the instance with the fewest GPUs per expert that hold all replicas, where the sections ask for that.

    Tried are the divisors of ``cluster.gpus_per_node``, so that groups stay in their node; what contradicts another
    field is left out. Where none holds them, experts stay whole.

    Parameters
    ----------
    sections : Any
        Content of an instance file.
    instance : Instance
        The same with whole experts.
    """
    if not _asks(sections) or holds_experts(instance):
        return instance
    per_node = instance.cluster.gpus_per_node
    for shards in range(2, per_node + 1):
        if per_node % shards == 0:
            try:
                sharded = Instance.model_validate(_with(sections, shards))
            except InputError:
                continue
            if holds_experts(sharded):
                return sharded
    return instance


def holds_experts(instance: Instance) -> bool:
    """Whether slots suffice for every layer's replicas, and memory for those of all layers."""
    per_node, placement = instance.cluster.gpus_per_node, instance.placement
    layers, shared = len(instance.moe_layers), isinstance(placement.replicas, SharedSlots)
    of_layer = [instance.model.experts] * layers if shared else list(instance.replicas_by_layer)
    failed = set(placement.failed_gpus)
    slots, memory = [], []
    for gpu in range(instance.gpus):
        works = gpu not in failed
        held = shards_that_fit(instance, gpu_memory_bytes(instance, gpu))
        slots.append(placement.slots_per_gpu if works else 0)
        memory.append(min(held, placement.slots_per_gpu * layers) if works else 0)
    nodes = range(0, instance.gpus, per_node)
    tp = instance.parallelism.expert_tp
    in_layer = sum(_replicas(slots[first : first + per_node], tp) for first in nodes)
    in_all = sum(_replicas(memory[first : first + per_node], tp) for first in nodes)
    return max(of_layer) <= in_layer and sum(of_layer) <= in_all


def _replicas(held: list[int], shards: int) -> int:
    """Return how many replicas a node's GPUs hold, each with its shards on different ones of them (Gale, Ryser)."""
    most = sum(held) // shards
    while most and sum(min(of_gpu, most) for of_gpu in held) < most * shards:
        most -= 1
    return most


def _asks(sections: Any) -> bool:
    parallelism = sections.get("parallelism") if isinstance(sections, Mapping) else None
    return isinstance(parallelism, Mapping) and parallelism.get("expert_tp") == AUTO


def _with(sections: Mapping[str, Any], shards: int) -> dict[str, Any]:
    return {**sections, "parallelism": {**sections["parallelism"], "expert_tp": shards}}
