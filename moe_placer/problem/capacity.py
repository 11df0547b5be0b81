"""How many experts each GPU may hold, per layer and over all layers, and whether that can be enough."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InfeasibleError
from moe_placer.instance import Instance
from moe_placer.instance.schema import SharedSlots
from moe_placer.problem.failure_domains import least_replicas
from moe_placer.problem.node_limits import most_of_experts, most_replicas, most_together
from moe_placer.problem.openings import Asked, open_gpus
from moe_placer.problem.pins import fits_pins
from moe_placer.problem.replica_counts import replicas_by_load
from moe_placer.problem.shortage import (
    find_shortage,
    memory_slots,
    no_way,
    usable_slots,
    widest_nodes,
    working_gpus,
)

__all__ = ["Capacity", "choose_replicas", "find_capacity", "why_infeasible"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Capacity:
    """How many experts GPUs and nodes can take.

    Attributes
    ----------
    memory_slots : int array [GPUs]
        Expert replicas (or shards) that a GPU's memory can take over all layers.
    usable : int array [GPUs]
        The same, as far as slots let it be used; 0 for a GPU that failed.
    node_memory_slots : int array [nodes]
        Replicas that a node can take over all layers, from ``usable``.
    per_gpu : int
        Slots of a GPU in one layer.
    binds : bool
        Whether some working GPU has memory for fewer replicas than its slots.
    slots : int array [MoE layers, GPUs]
        Replicas that a GPU may take in one layer. Where memory binds, a GPU is closed in some layers, so that layers
        can be solved apart from each other and still fit together: blindly here, by prices in
        `moe_placer.decomposition.memory`.
    widest : int array [nodes]
        Replicas that a node could take in one layer if its memory were for that layer alone: what bounds must allow.
    replicas : int array [MoE layers]
        Replicas of each layer; of a budget that layers share, what equal shares come to where there is room.
    experts, shards, gpus_per_node : int
    apart : bool
        Whether replicas of one expert keep to different nodes, not just GPUs.
    pins : tuple
        Per layer, the pairs (expert, GPU) that are pinned.
    least : int
        Replicas that every expert must have, where how many is a choice.
    """

    memory_slots: Ints
    usable: Ints
    node_memory_slots: Ints
    per_gpu: int
    binds: bool
    slots: Ints
    widest: Ints
    replicas: Ints
    experts: int
    shards: int
    gpus_per_node: int
    apart: bool
    pins: tuple[tuple[tuple[int, int], ...], ...]
    least: int = 1

    @cached_property
    def node_slots(self) -> Ints:
        """Replicas that a node may take in one layer [MoE layers, nodes], from ``slots``."""
        return most_replicas(self._by_node, self.shards)

    @cached_property
    def together(self) -> Ints:
        """Replicas of one expert that may share a node [MoE layers, nodes].

        So few that GPUs can be given to whatever keeps to this and to ``node_slots``; where that would leave too few
        places for a layer, as many as there are GPUs.
        """
        safe, loose = most_together(self._by_node, self.shards), (self._by_node > 0).sum(axis=2) // self.shards
        if self.apart:
            return np.minimum(safe, 1)
        for layer, node_slots in enumerate(self.node_slots):
            if most_of_experts(node_slots, safe[layer], self.experts)[-1] < self.replicas[layer]:
                safe[layer] = loose[layer]
        return safe

    @property
    def places(self) -> Ints:
        """Replicas of one expert that each node can hold, if it holds nothing else [nodes]."""
        gpus = (self.usable.reshape(-1, self.gpus_per_node) > 0).sum(axis=1)
        return np.asarray(np.minimum(gpus // self.shards, 1 if self.apart else self.gpus_per_node))

    @property
    def _by_node(self) -> Ints:
        return self.slots.reshape(len(self.slots), -1, self.gpus_per_node)

    def most_of_experts(self, index: int) -> Ints:
        """Return the most replicas that any k experts can have in a layer without pins, for k from 1 to all experts."""
        if self.shards > 1 or self.apart:
            return most_of_experts(self.node_slots[index], self.together[index], self.experts)
        value, count = np.unique(self.slots[index], return_counts=True)
        return np.asarray(np.minimum(value, np.arange(1, self.experts + 1)[:, None]) @ count)

    @cached_property
    def most_in_layers(self) -> Ints:
        """The most replicas that any k experts can have in each layer without pins [MoE layers, experts]."""
        found = []
        for index, slots in enumerate(self.node_slots):
            by_node = most_of_experts(slots, self.together[index], self.experts)
            found.append(np.minimum(self.most_of_experts(index), by_node))
        return np.stack(found)

    def allows(self, index: int, replicas: Ints) -> bool:
        """Whether a layer with ``replicas`` [experts] of each expert has a valid placement."""
        fullest = np.cumsum(-np.sort(-replicas))
        if (fullest > self.most_in_layers[index]).any():
            return False  # or nodes could, with fewer replicas of one expert on each
        pins, slots = self.pins[index], self.slots[index]
        if not pins or replicas.max() == 1:
            return bool((np.bincount([gpu for _, gpu in pins], minlength=len(slots)) <= slots).all())
        return fits_pins(pins, replicas, slots, self.gpus_per_node, self.apart)

    def filled(self, opened: Ints) -> Ints:
        """Return slots [MoE layers, GPUs] with what room is left on each GPU for the layers with the fewest."""
        slots, left = opened.copy(), self.usable - opened.sum(axis=0)
        for gpu in np.flatnonzero(left > 0).tolist():
            for _ in range(int(left[gpu])):
                open_ = np.flatnonzero(slots[:, gpu] < self.per_gpu)
                if not len(open_):
                    break
                slots[open_[slots[open_].sum(axis=1).argmin()], gpu] += 1
        return slots

    def with_slots(self, slots: Ints) -> Capacity:
        """Return the same with other ``slots``."""
        return replace(self, slots=slots)


def find_capacity(instance: Instance) -> Capacity:
    """Return how many replicas every GPU and node may hold, so that every layer has a placement.

    Raises
    ------
    InfeasibleError
        There is no placement; the message says what is missing and what would help.
    NothingFoundError
        Whether there is one could not be decided in a minute.
    """
    if reason := find_shortage(instance):
        raise InfeasibleError(reason)
    capacity = _closed_blindly(instance)
    if _serves(instance, capacity):
        return _with_shares(instance, capacity)
    opened = open_gpus(_asked(instance, capacity))
    if opened is None:
        raise InfeasibleError(no_way(instance))
    return _with_shares(instance, capacity.with_slots(capacity.filled(opened)))


def why_infeasible(instance: Instance) -> str | None:
    """Say why no placement can exist; None where there is one.

    Raises
    ------
    NothingFoundError
        That could not be decided in a minute.
    """
    try:
        find_capacity(instance)
    except InfeasibleError as error:
        return str(error)
    return None


def _closed_blindly(instance: Instance) -> Capacity:
    """Return the capacity with GPUs closed in some layers, where memory binds, whatever is to be placed."""
    layers, per_gpu, shards = len(instance.moe_layers), instance.placement.slots_per_gpu, instance.parallelism.expert_tp
    works, usable, least = working_gpus(instance), usable_slots(instance), least_replicas(instance)
    binds = bool((usable[works] < per_gpu * layers).any())
    shares = isinstance(instance.placement.replicas, SharedSlots)
    pins: dict[int, list[tuple[int, int]]] = {layer: [] for layer in instance.moe_layers}
    for pin in instance.placement.pinned:
        pins[pin.layer].append((pin.expert, pin.gpu))
    return Capacity(
        memory_slots=memory_slots(instance),
        usable=usable,
        node_memory_slots=most_replicas(usable.reshape(instance.cluster.nodes, -1), shards),
        per_gpu=per_gpu,
        binds=binds,
        slots=_spread(usable, layers, per_gpu) if binds else np.tile(np.where(works, per_gpu, 0), (layers, 1)),
        widest=widest_nodes(instance),
        replicas=np.full(layers, least * instance.model.experts) if shares else np.array(instance.replicas_by_layer),
        experts=instance.model.experts,
        shards=shards,
        gpus_per_node=instance.cluster.gpus_per_node,
        apart=instance.placement.replicas_apart == "node",
        pins=tuple(map(tuple, pins.values())),
        least=least,
    )


def _serves(instance: Instance, capacity: Capacity) -> bool:
    """Whether every layer can have all its replicas, in one choice of replicas if these are free."""
    for index, total in enumerate(capacity.replicas.tolist()):
        if capacity.most_of_experts(index)[-1] < total:
            return False
        if not capacity.pins[index]:
            continue
        if instance.placement.replicas == "dp":
            replicas = np.full(capacity.experts, instance.parallelism.dp)
        else:
            replicas = _some_replicas(capacity, index, total)
        if replicas.sum() < total or not capacity.allows(index, replicas):
            return False
    return True


def _some_replicas(capacity: Capacity, index: int, total: int) -> Ints:
    """Choose replicas of each expert that a layer has a placement for, as many in all as it can have."""
    return replicas_by_load(np.ones(capacity.experts), total, total, partial(capacity.allows, index), capacity.least)


def _asked(instance: Instance, capacity: Capacity) -> Asked:
    budget = instance.redundant_slots if isinstance(instance.placement.replicas, SharedSlots) else 0
    return Asked(
        experts=capacity.experts,
        shards=capacity.shards,
        gpus_per_node=capacity.gpus_per_node,
        least=capacity.replicas,
        most=capacity.replicas + budget,
        in_all=capacity.experts * len(capacity.replicas) + budget if budget else int(capacity.replicas.sum()),
        least_of_expert=capacity.least,
        dp=instance.parallelism.dp if instance.placement.replicas == "dp" else None,
        pins=capacity.pins,
        apart=capacity.apart,
        slots=np.tile(np.where(working_gpus(instance), capacity.per_gpu, 0), (len(capacity.replicas), 1)),
        memory_slots=capacity.usable,
    )


def _with_shares(instance: Instance, capacity: Capacity) -> Capacity:
    """Give each layer its share of a budget that all share: equal ones, but no more than it has room for."""
    budget = instance.placement.replicas
    if not isinstance(budget, SharedSlots):
        return capacity
    most = np.array([capacity.most_of_experts(index)[-1] for index in range(len(capacity.replicas))])
    replicas = np.minimum(instance.replicas_by_layer, most)
    left = budget.redundant_slots_in_all - int(replicas.sum() - capacity.experts * len(replicas))
    while left > 0 and (open_ := np.flatnonzero(replicas < most)[:left]).size:
        more = np.minimum(max(1, left // len(open_)), (most - replicas)[open_])
        replicas[open_] += more
        left -= int(more.sum())
    return replace(capacity, replicas=replicas)


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


def choose_replicas(instance: Instance, load: npt.NDArray[np.float64], capacity: Capacity) -> Ints:
    """Return the replicas of each expert [MoE layers, experts]; redundant slots go to experts by load."""
    layers, experts = len(instance.moe_layers), instance.model.experts
    if instance.placement.replicas == "dp":
        return np.full((layers, experts), instance.parallelism.dp, dtype=np.int64)
    replicas = np.empty((layers, experts), dtype=np.int64)
    for index, (own, total) in enumerate(zip(load, capacity.replicas.tolist(), strict=True)):
        fits = partial(capacity.allows, index)
        replicas[index] = replicas_by_load(own, total, int(capacity.places.sum()), fits, capacity.least)
    return replicas
