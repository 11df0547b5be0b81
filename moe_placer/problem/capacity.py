"""How many experts each GPU may hold, per layer and over all layers, and whether that can be enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InfeasibleError
from moe_placer.instance import Instance
from moe_placer.instance.schema import SharedSlots
from moe_placer.instance.sizes import GB, expert_bytes, gpu_memory_bytes, memory_parts

__all__ = ["Capacity", "find_capacity", "why_infeasible"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Capacity:
    """Room for experts.

    Attributes
    ----------
    room : int array [GPUs]
        Expert copies (or shards) that a GPU's memory can take over all layers.
    usable : int array [GPUs]
        The same, as far as slots let it be used; 0 for a GPU that failed.
    node_room : int array [nodes]
        Replicas that a node can take over all layers, from ``usable``.
    per_gpu : int
        Slots of a GPU in one layer.
    binds : bool
        Whether some working GPU has less room than slots.
    slots : int array [MoE layers, GPUs]
        Copies that a GPU may take in one layer. Where memory binds, a GPU is closed in some layers, so that layers can
        be solved apart from each other and still fit together: blindly here, by prices in
        `moe_placer.decomposition.memory`.
    node_slots : int array [MoE layers, nodes]
        Replicas that a node may take in one layer, from ``slots``.
    widest : int array [nodes]
        Replicas that a node could take in one layer if memory did not matter: what bounds must allow.
    """

    room: Ints
    usable: Ints
    node_room: Ints
    per_gpu: int
    binds: bool
    slots: Ints
    node_slots: Ints
    widest: Ints


def find_capacity(instance: Instance) -> Capacity:
    """Return how many copies every GPU and node may hold.

    Raises
    ------
    InfeasibleError
        Slots or memory cannot hold all replicas; the message says what is missing and what would help.
    """
    reason = why_infeasible(instance)
    if reason:
        raise InfeasibleError(reason)
    layers, per_gpu = len(instance.moe_layers), instance.placement.slots_per_gpu
    room = _room(instance)
    works = _works(instance)
    wanted = np.where(works, np.minimum(room, per_gpu * layers), 0)
    binds = bool((wanted[works] < per_gpu * layers).any())
    slots = _spread(wanted, layers, per_gpu) if binds else np.tile(np.where(works, per_gpu, 0), (layers, 1))
    widest = _node_slots(instance, np.where(works, per_gpu, 0)[None, :])[0]
    node_room = wanted.reshape(instance.cluster.nodes, -1).sum(axis=1) // instance.parallelism.expert_tp
    return Capacity(room, wanted, node_room, per_gpu, binds, slots, _node_slots(instance, slots), widest)


def why_infeasible(instance: Instance) -> str | None:
    """Say why no placement can exist, as far as counting slots and memory shows; None where it may."""
    layers, per_gpu = len(instance.moe_layers), instance.placement.slots_per_gpu
    shards = instance.parallelism.expert_tp
    replicas, in_all = instance.replicas_per_layer, sum(instance.replicas_by_layer)
    works = _works(instance)
    widest = int(_node_slots(instance, np.where(works, per_gpu, 0)[None, :])[0].sum())
    if widest < replicas:
        sharded = f" (each replica takes {shards} GPUs)" if shards > 1 else ""
        asks = f"{replicas:,} expert replicas in every layer"
        if isinstance(instance.placement.replicas, SharedSlots):
            asks = f"{in_all:,} expert replicas over {layers} layers, {replicas:,} a layer in equal shares"
        return (
            f"{instance.name} asks for {asks}, but {works.sum():,} working GPUs "
            f"with {per_gpu} {'slot' if per_gpu == 1 else 'slots'} each hold only {widest:,} in a layer{sharded}. "
            "Use more GPUs, more placement.slots_per_gpu, or fewer replicas."
        )
    too_close = _too_close(instance, works)
    if too_close:
        return too_close
    room = np.where(works, np.minimum(_room(instance), per_gpu * layers), 0)
    needed, there = in_all * shards, int(room.sum())
    if there < needed:
        size, taken = expert_bytes(instance) / 1e6, memory_parts(instance).total / GB
        return (
            f"{instance.name} has {needed:,} expert copies to place over all layers, {size:,.1f} MB each, but the "
            f"memory left on its GPUs ({instance.cluster.gpu.memory_gb:g} GB each, {taken:,.1f} GB of it taken by "
            f"attention, dense layers, embeddings and the KV cache) holds only {there:,}. Use more memory, a smaller "
            "dtype, more attention_tp, less placement.kv_cache_gb, or fewer replicas."
        )
    return None


def _too_close(instance: Instance, works: npt.NDArray[np.bool_]) -> str | None:
    """Say whether the copies of one expert cannot be kept apart."""
    copies = instance.parallelism.dp if instance.placement.replicas == "dp" else 1
    shards = instance.parallelism.expert_tp
    by_node = works.reshape(instance.cluster.nodes, -1).sum(axis=1)
    apart = instance.placement.replicas_apart
    places = int((by_node >= shards).sum() if apart == "node" else (by_node // shards).sum())
    if places >= copies:
        most = places * instance.model.experts
        if instance.replicas_per_layer <= most:
            return None
        return (
            f"{instance.name} asks for {instance.replicas_per_layer:,} expert replicas in a layer, but its "
            f"{instance.model.experts:,} experts can have only {most:,} with copies of each on different {apart}s. "
            "Use fewer redundant slots" + (", or placement.replicas_apart: gpu." if apart == "node" else ".")
        )
    return (
        f"{instance.name} wants {copies} copies of every expert on different {apart}s, but only {places} can hold one. "
        f"Use fewer copies (parallelism.dp)" + (", or placement.replicas_apart: gpu." if apart == "node" else ".")
    )


def _works(instance: Instance) -> npt.NDArray[np.bool_]:
    works = np.ones(instance.gpus, dtype=bool)
    works[list(instance.placement.failed_gpus)] = False
    return works


def _room(instance: Instance) -> Ints:
    """Count the copies that fit each GPU's memory; a hair of slack, as the verifier's, keeps an exact fit."""
    resident, size = memory_parts(instance).total, expert_bytes(instance)
    free = (gpu_memory_bytes(instance, gpu) * (1 + 1e-9) - resident for gpu in range(instance.gpus))
    return np.array([max(0, math.floor(left / size)) for left in free], dtype=np.int64)


def _spread(wanted: Ints, layers: int, per_gpu: int) -> Ints:
    """Open each GPU in as many layers as its memory allows, the same number of slots in every layer.

    Column sums are ``wanted``; rows differ by at most one. Serving the GPUs with the most openings left first is the
    Gale-Ryser construction, which finds such a matrix whenever there is one.
    """
    left = wanted.astype(np.int64).copy()
    slots = np.zeros((layers, len(wanted)), dtype=np.int64)
    for layer in range(layers):
        still = layers - layer
        # What cannot wait: a GPU must be opened now if its openings left would not fit in the layers that follow.
        slots[layer] = np.maximum(0, left - per_gpu * (still - 1))
        target = -(-int(left.sum()) // still)
        while slots[layer].sum() < target:
            free = np.flatnonzero((slots[layer] < per_gpu) & (left > slots[layer]))
            if not len(free):
                break
            many = free[np.argsort(-(left - slots[layer])[free], kind="stable")]
            slots[layer][many[: target - int(slots[layer].sum())]] += 1
        left -= slots[layer]
    return slots


def _node_slots(instance: Instance, slots: Ints) -> Ints:
    """Replicas a node can take, given the copies its GPUs can: all of them, or groups of distinct GPUs when sharded."""
    by_gpu = slots.reshape(len(slots), instance.cluster.nodes, instance.cluster.gpus_per_node)
    shards = instance.parallelism.expert_tp
    total: Ints = by_gpu.sum(axis=2)
    if shards == 1:
        return total
    most: Ints = total // shards
    # m replicas fit where sum over GPUs of min(slots, m) reaches m * shards: no GPU holds two shards of one replica.
    while (short := np.minimum(by_gpu, most[:, :, None]).sum(axis=2) < most * shards).any():
        most = most - short
    return most
