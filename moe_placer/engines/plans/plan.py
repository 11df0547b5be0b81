"""A plan as engines see it: which expert is in which slot of which rank; and what it is deployed on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from moe_placer.errors import InputError, Mistake
from moe_placer.instance import Instance
from moe_placer.placement import Placement

__all__ = ["Deployment", "Plan", "plan_of", "read_deployment"]

Slots = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Plan:
    """The logical expert in every slot of every rank and layer.

    Attributes
    ----------
    experts : int
        Logical experts of each layer.
    slots : nested tuples
        ``slots[l][r]`` are the experts in the slots of rank r in MoE layer l (l counts MoE layers in order), in the
        order of local slots.
    """

    experts: int
    slots: Slots

    @property
    def layers(self) -> int:
        """MoE layers."""
        return len(self.slots)

    @property
    def ranks(self) -> int:
        """Expert-parallel ranks."""
        return len(self.slots[0])

    def flat(self, layer: int) -> list[int]:
        """Experts of all slots of a MoE layer, rank after rank."""
        return [expert for rank in self.slots[layer] for expert in rank]

    @property
    def slots_by_layer(self) -> tuple[int, ...]:
        """Slots of each MoE layer, over all ranks."""
        return tuple(sum(map(len, ranks)) for ranks in self.slots)

    @property
    def redundant(self) -> int:
        """Redundant slots of the first MoE layer; the same in all layers where the engine wants that."""
        return self.slots_by_layer[0] - self.experts

    def gpus(self, deployment: Deployment) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """GPUs of every expert's replicas in every MoE layer, in the order of ranks: a placement's ``gpu``."""
        return tuple(self._gpus_of(layer, deployment) for layer in range(self.layers))

    def _gpus_of(self, layer: int, deployment: Deployment) -> tuple[tuple[int, ...], ...]:
        gpus: list[list[int]] = [[] for _ in range(self.experts)]
        for rank, held in enumerate(self.slots[layer]):
            for expert in held:
                gpus[expert].append(deployment.gpu_of(rank))
        return tuple(map(tuple, gpus))

    def duplicates(self) -> Iterator[tuple[int, int, int]]:
        """Yield (MoE layer, rank, expert) for every slot that repeats an expert of its own rank."""
        for layer, ranks in enumerate(self.slots):
            for rank, held in enumerate(ranks):
                seen: set[int] = set()
                for expert in held:
                    if expert in seen:
                        yield layer, rank, expert
                    seen.add(expert)


@dataclass(frozen=True)
class Deployment:
    """The ranks, layers and slots of the instance that a plan is for.

    Attributes
    ----------
    name : str
        Of the instance.
    experts, top_k : int
        Logical experts of a layer, and how many of them a token chooses.
    decoder_layers : int
        Layers of the model, dense ones included.
    moe_layers : tuple of int
        Indices of the MoE layers among them.
    nodes : tuple of int
        Nodes that work, in the order of ranks.
    gpus_per_node : int
    slots_by_layer : tuple of int or None
        Slots of each MoE layer over all ranks; None where only their sum over layers is limited.
    replica_routing : str
        The instance's rule by which a token picks a replica.
    dispatch : str
        How often the instance sends a token: ``per-expert``, ``per-gpu`` or ``per-node``.
    attention_tp : int
        GPUs that share attention; the others start tokens of their own.
    """

    name: str
    experts: int
    top_k: int
    decoder_layers: int
    moe_layers: tuple[int, ...]
    nodes: tuple[int, ...]
    gpus_per_node: int
    slots_by_layer: tuple[int, ...] | None
    replica_routing: str
    dispatch: str
    attention_tp: int

    @property
    def attention_groups(self) -> int:
        """Groups of GPUs that start tokens of their own (data-parallel attention)."""
        return self.ranks // self.attention_tp

    @property
    def ranks(self) -> int:
        """Expert-parallel ranks: one for each GPU of a node that works."""
        return len(self.nodes) * self.gpus_per_node

    def gpu_of(self, rank: int) -> int:
        """Global GPU id of a rank."""
        node, local = divmod(rank, self.gpus_per_node)
        return self.nodes[node] * self.gpus_per_node + local


def plan_of(placement: Placement, deployment: Deployment) -> Plan:
    """Return a placement of whole experts as slots; on every rank experts are in ascending order."""
    rank_of = {deployment.gpu_of(rank): rank for rank in range(deployment.ranks)}
    layers = []
    for index in range(len(placement.gpu)):
        held: list[list[int]] = [[] for _ in range(deployment.ranks)]
        for expert in range(deployment.experts):
            for (gpu,) in placement.shards(index, expert):
                held[rank_of[gpu]].append(expert)
        layers.append(tuple(map(tuple, held)))
    return Plan(deployment.experts, tuple(layers))


def read_deployment(instance: Instance) -> Deployment:
    """Return an instance's ranks and layers.

    Raises
    ------
    InputError
        Engines cannot number its GPUs: experts are sharded, part of a node has failed, or attention is shared by a
        number of GPUs that does not divide all of them.
    """
    mistakes = []
    if instance.parallelism.expert_tp > 1:
        expected = "1: the engines' files give whole experts to ranks"
        mistakes.append(Mistake(str(instance.parallelism.expert_tp), expected, "parallelism.expert_tp"))
    per_node, failed = instance.cluster.gpus_per_node, set(instance.placement.failed_gpus)
    working = []
    for node in range(instance.cluster.nodes):
        down = failed & set(range(node * per_node, (node + 1) * per_node))
        if not down:
            working.append(node)
        elif len(down) < per_node:
            found = f"{len(down)} of the {per_node} GPUs of node {node}"
            expected = "all GPUs of a node, or none: engines number ranks node by node, equally many on each"
            mistakes.append(Mistake(found, expected, "placement.failed_gpus"))
    ranks, attention_tp = len(working) * per_node, instance.parallelism.attention_tp
    if not mistakes and ranks % attention_tp:
        expected = f"a divisor of the {ranks} GPUs that work: engines run attention in groups of so many ranks"
        mistakes.append(Mistake(str(attention_tp), expected, "parallelism.attention_tp"))
    if mistakes:
        raise InputError(mistakes)
    shared = not isinstance(instance.placement.replicas, str) and hasattr(
        instance.placement.replicas, "redundant_slots_in_all"
    )
    return Deployment(
        name=instance.name,
        experts=instance.model.experts,
        top_k=instance.model.top_k,
        decoder_layers=instance.model.layers,
        moe_layers=instance.moe_layers,
        nodes=tuple(working),
        gpus_per_node=per_node,
        slots_by_layer=None if shared else instance.replicas_by_layer,
        replica_routing=instance.placement.replica_routing,
        dispatch=instance.placement.dispatch,
        attention_tp=instance.parallelism.attention_tp,
    )
