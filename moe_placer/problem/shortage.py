"""Why an instance has no placement: counts of slots and memory that do not suffice, each with what would help."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import SharedSlots
from moe_placer.instance.sizes import GB, expert_bytes, gpu_memory_bytes, memory_parts, shards_that_fit
from moe_placer.problem.failure_domains import failure_domains, least_replicas
from moe_placer.problem.node_limits import most_of_experts, most_replicas

__all__ = [
    "fewest_replicas",
    "find_shortage",
    "memory_slots",
    "no_way",
    "slots_of_layer",
    "usable_slots",
    "widest_nodes",
    "working_gpus",
]

Ints = npt.NDArray[np.int64]

_SHOWN = 8  # pins that a message lists


def find_shortage(instance: Instance) -> str | None:
    """Say what is missing, as far as counting slots, places and memory shows; None where that suffices."""
    checks = (_too_few_slots, _too_close, _too_few_elsewhere, _too_little_memory, _too_many_pins)
    return next((reason for check in checks if (reason := check(instance))), None)


def slots_of_layer(instance: Instance) -> int:
    """Replicas that the working GPUs can take in one layer, memory aside."""
    return int(_on_nodes(instance, _slots(instance)).sum())


def widest_nodes(instance: Instance) -> Ints:
    """Replicas that each node can take in one layer, if its GPUs' memory is for this layer alone [nodes]."""
    return _on_nodes(instance, np.minimum(usable_slots(instance), instance.placement.slots_per_gpu))


def _slots(instance: Instance) -> Ints:
    return np.where(working_gpus(instance), instance.placement.slots_per_gpu, 0)


def _on_nodes(instance: Instance, of_gpu: Ints) -> Ints:
    return most_replicas(of_gpu.reshape(instance.cluster.nodes, -1), instance.parallelism.expert_tp)


def fewest_replicas(instance: Instance) -> int:
    """Replicas that a layer must have: of a budget that layers share, it need not take anything."""
    shared = isinstance(instance.placement.replicas, SharedSlots)
    return least_replicas(instance) * instance.model.experts if shared else instance.replicas_per_layer


def _too_few_slots(instance: Instance) -> str | None:
    asked, there = fewest_replicas(instance), slots_of_layer(instance)
    if there >= asked:
        return None
    per_gpu, shards = instance.placement.slots_per_gpu, instance.parallelism.expert_tp
    sharded = f" (each replica takes {shards} GPUs of one node)" if shards > 1 else ""
    working = f"{working_gpus(instance).sum():,} working GPUs"
    return (
        f"{instance.name} asks for {asked:,} expert replicas in every layer, but {working} with {per_gpu} "
        f"{'slot' if per_gpu == 1 else 'slots'} each hold only {there:,} in a layer{sharded}. "
        "Use more GPUs, more placement.slots_per_gpu, or fewer replicas."
    )


def _too_close(instance: Instance) -> str | None:
    """Say whether the replicas of one expert cannot be kept apart."""
    replicas = instance.parallelism.dp if instance.placement.replicas == "dp" else least_replicas(instance)
    apart, experts = instance.placement.replicas_apart, instance.model.experts
    places = working_gpus(instance).reshape(instance.cluster.nodes, -1).sum(axis=1) // instance.parallelism.expert_tp
    if apart == "node":
        places = np.minimum(places, 1)
    hint = ", or placement.replicas_apart: gpu." if apart == "node" else "."
    if places.sum() < replicas:
        return (
            f"{instance.name} wants {replicas} replicas of every expert on different {apart}s, but only {places.sum()} "
            f"can hold one. Use fewer replicas (parallelism.dp){hint}"
        )
    most = int(most_of_experts(_on_nodes(instance, _slots(instance)), places, experts)[-1])
    if fewest_replicas(instance) <= most:
        return None
    return (
        f"{instance.name} asks for {fewest_replicas(instance):,} expert replicas in a layer, but its {experts:,} "
        f"experts can have only {most:,} with replicas of each on different {apart}s. Use fewer redundant slots{hint}"
    )


def _too_few_elsewhere(instance: Instance) -> str | None:
    """Say whether some failure domain leaves too few slots for one replica of every expert outside of it."""
    domain, experts = failure_domains(instance), instance.model.experts
    if domain is None:
        return None
    of_node = _on_nodes(instance, _slots(instance))
    outside = int(of_node.sum()) - np.bincount(domain, of_node).astype(np.int64)
    worst = int(outside.argmin())
    if outside[worst] >= experts:
        return None
    kind = instance.placement.survives
    return (
        f"{instance.name} asks that every expert survives the loss of any {kind} (placement.survives), but outside of "
        f"{kind} {worst} there are slots for {outside[worst]:,} replicas in a layer, and {experts:,} experts each need "
        f"one there. Use more {'leaves' if kind == 'leaf' else 'nodes'}, more placement.slots_per_gpu, or another "
        "placement.survives."
    )


def _too_little_memory(instance: Instance) -> str | None:
    usable, shards = usable_slots(instance), instance.parallelism.expert_tp
    there = int(_on_nodes(instance, usable).sum())
    shared = isinstance(instance.placement.replicas, SharedSlots)
    layers = len(instance.moe_layers)
    needed = fewest_replicas(instance) * layers if shared else sum(instance.replicas_by_layer)
    size, taken = expert_bytes(instance) / 1e6, memory_parts(instance).total / GB
    if there < needed:
        on = "" if shards == 1 else f" on each of {shards} GPUs of one node"
        return (
            f"{instance.name} has {needed:,} expert replicas to place over all layers, {size:,.1f} MB each{on}, but "
            f"the memory left on its GPUs ({instance.cluster.gpu.memory_gb:g} GB each, {taken:,.1f} GB of it taken by "
            f"attention, dense layers, embeddings and the KV cache) holds only {there:,}. Use more memory, a smaller "
            "dtype, more attention_tp, less placement.kv_cache_gb, or fewer replicas."
        )
    return None


def _too_many_pins(instance: Instance) -> str | None:
    usable, size = usable_slots(instance), expert_bytes(instance) / 1e6
    pinned = np.bincount([pin.gpu for pin in instance.placement.pinned], minlength=instance.gpus)
    if not (over := np.flatnonzero(pinned > usable)).size:
        return None
    gpu = int(over[0])
    pins = [f"expert {pin.expert} of layer {pin.layer}" for pin in instance.placement.pinned if pin.gpu == gpu]
    return (
        f"{instance.name} pins {len(pins)} replicas to GPU {gpu} ({', '.join(pins[:_SHOWN])}"
        f"{', ...' if len(pins) > _SHOWN else ''}), {size:,.1f} MB each, but the memory left on it holds only "
        f"{usable[gpu]}. Pin fewer there, or use more memory."
    )


def no_way(instance: Instance) -> str:
    """Say that slots and memory suffice by their counts, but no placement keeps all rules."""
    pins = " pins," if instance.placement.pinned else ""
    return (
        f"{instance.name}: slots, memory,{pins} failed GPUs and the distance between replicas of one expert leave no "
        "placement, although each alone would (shown by an integer program that decides which GPU takes how many "
        "replicas of each layer). Use more memory, more placement.slots_per_gpu, or fewer replicas"
        f"{' or pins' if pins else ''}."
    )


def working_gpus(instance: Instance) -> npt.NDArray[np.bool_]:
    """Mask of the GPUs that have not failed [GPUs]."""
    works = np.ones(instance.gpus, dtype=bool)
    works[list(instance.placement.failed_gpus)] = False
    return works


def usable_slots(instance: Instance) -> Ints:
    """Count the shards that each GPU can take over all layers, by its memory and slots [GPUs]."""
    most = instance.placement.slots_per_gpu * len(instance.moe_layers)
    return np.where(working_gpus(instance), np.minimum(memory_slots(instance), most), 0)


def memory_slots(instance: Instance) -> Ints:
    """Count the replicas that fit each GPU's memory [GPUs]."""
    memories = [gpu_memory_bytes(instance, gpu) for gpu in range(instance.gpus)]
    held = {memory: shards_that_fit(instance, memory) for memory in set(memories)}
    return np.array([held[memory] for memory in memories], dtype=np.int64)
