"""The hard constraints, one function per rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import FatTree, RedundantSlots, SharedSlots, ThreeLevelTree
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.capacity import GB, fits_memory, memory_of, sizes
from moe_placer.verifier.verification import Violation

__all__ = [
    "Replica",
    "check_apart",
    "check_counts",
    "check_failed",
    "check_keys",
    "check_memory",
    "check_pinned",
    "check_places",
    "check_slots",
    "gpu_memory",
    "read_replicas",
    "shown",
]


@dataclass(frozen=True)
class Replica:
    """One replica as the placement has it.

    Attributes
    ----------
    row : int
        Its layer, counted among MoE layers.
    layer : int
        The same, as index in the model.
    expert, replica : int
        Which replica of which expert.
    gpus : tuple of int
        One per shard, as they stand in the placement: they may not exist.
    """

    row: int
    layer: int
    expert: int
    replica: int
    gpus: tuple[int, ...]

    def violates(self, rule: str, message: str, gpu: int | None = None) -> Violation:
        """Return a violation by this replica."""
        return Violation(rule, message, self.layer, self.expert, self.replica, gpu)


def shown(number: int) -> str:
    """Write a number from a file that may be absurdly long."""
    return str(number) if abs(number) < 10**18 else "a number of more than 18 digits"


def read_replicas(instance: Instance, placement: Placement) -> list[Replica]:
    """List every replica of the layers and experts that the model has; rule ``shape`` reports the others."""
    return [
        Replica(row, layer, expert, replica, gpus)
        for row, layer in enumerate(instance.moe_layers[: len(placement.gpu)])
        for expert in range(min(len(placement.gpu[row]), instance.model.experts))
        for replica, gpus in enumerate(placement.shards(row, expert))
    ]


def check_keys(instance: Instance, placement: Placement, traffic: Traffic) -> Iterator[Violation]:
    """Rules ``instance`` and ``traffic``: the placement says that it was made for these."""
    key = placement.instance
    if key.name != instance.name:
        yield Violation("instance", f"made for instance {key.name[:200]!r}, required is {instance.name!r}")
    if key.sha256 != instance.sha256:
        found = f"made for an instance with SHA-256 {key.sha256[:64]!r}"
        yield Violation("instance", f"{found}, required is {instance.sha256!r} (the same name, other content?)")
    if key.traffic_sha256 != traffic.sha256:
        found = f"made for traffic with SHA-256 {key.traffic_sha256[:64]!r}"
        yield Violation("traffic", f"{found}, required is {traffic.sha256!r}")


def check_counts(instance: Instance, placement: Placement) -> Iterator[Violation]:
    """Rules ``shape`` and ``replicas``: as many layers, experts, records and replicas as there should be."""
    layers, experts = instance.moe_layers, instance.model.experts
    for found, what in ((len(placement.gpu), "lists of GPUs"), (len(placement.layers), "layer records")):
        if found != len(layers):
            yield Violation("shape", f"{found} {what}, required is one per MoE layer ({len(layers)})")
    for layer, row in zip(layers, placement.gpu, strict=False):
        if len(row) != experts:
            yield Violation("shape", f"{len(row)} experts, required are {experts}", layer)
        else:
            yield from _check_replicas(instance, layer, [len(replicas) for replicas in row])
    yield from _check_shared_budget(instance, placement)


def _check_replicas(instance: Instance, layer: int, replicas: Sequence[int]) -> Iterator[Violation]:
    budget, dp = instance.placement.replicas, instance.parallelism.dp
    for expert, found in enumerate(replicas):
        if budget == "dp" and found != dp:
            yield Violation("replicas", f"{found} replicas, required is one per DP group ({dp})", layer, expert)
        elif found < 1:
            yield Violation("replicas", "no replica, required is at least one", layer, expert)
    if isinstance(budget, RedundantSlots):
        required = instance.model.experts + budget.redundant_slots
        if sum(replicas) != required:
            reason = f"{instance.model.experts} experts and {budget.redundant_slots} redundant slots"
            yield Violation("replicas", f"{sum(replicas)} replicas, required are {required} ({reason})", layer)


def _check_shared_budget(instance: Instance, placement: Placement) -> Iterator[Violation]:
    """Check that all layers together have no more replicas, beyond the first of each expert, than they share."""
    budget = instance.placement.replicas
    if not isinstance(budget, SharedSlots):
        return
    rows = placement.gpu[: len(instance.moe_layers)]
    found = sum(max(0, len(replicas) - 1) for row in rows for replicas in row)
    if found > budget.redundant_slots_in_all:
        required = f"required are at most redundant_slots_in_all ({budget.redundant_slots_in_all:,})"
        yield Violation("replicas", f"{found:,} redundant replicas over all layers, {required}")


def check_places(instance: Instance, replicas: Sequence[Replica]) -> Iterator[Violation]:
    """Rules ``gpu-id`` and ``shards``: GPUs exist, and the shards of a replica are on different ones of one node."""
    tp, per_node, gpus = instance.parallelism.expert_tp, instance.cluster.gpus_per_node, instance.gpus
    for replica in replicas:
        for gpu in replica.gpus:
            if gpu >= gpus:
                yield replica.violates("gpu-id", f"on GPU {shown(gpu)}, required is an id below {gpus}")
        if len(replica.gpus) != tp:
            yield replica.violates("shards", f"{len(replica.gpus)} shards, required is expert_tp ({tp})")
        elif len(set(replica.gpus)) < tp:
            yield replica.violates("shards", f"two shards on one GPU, required are {tp} different GPUs")
        elif len({gpu // per_node for gpu in replica.gpus}) > 1 and max(replica.gpus) < gpus:
            yield replica.violates("shards", "shards on several nodes, required are GPUs of one node")


def _existing(instance: Instance, replicas: Sequence[Replica]) -> Iterator[tuple[Replica, int]]:
    gpus = instance.gpus
    return ((replica, gpu) for replica in replicas for gpu in replica.gpus if gpu < gpus)


def check_slots(instance: Instance, replicas: Sequence[Replica]) -> Iterator[Violation]:
    """Rule ``slots``: a GPU holds at most slots_per_gpu experts of one layer."""
    slots = instance.placement.slots_per_gpu
    held = Counter((replica.layer, gpu) for replica, gpu in _existing(instance, replicas))
    for (layer, gpu), found in held.items():
        if found > slots:
            message = f"holds {found} experts, required are at most slots_per_gpu ({slots})"
            yield Violation("slots", message, layer, gpu=gpu)


def gpu_memory(instance: Instance, replicas: Sequence[Replica]) -> npt.NDArray[np.float64]:
    """Bytes used on each GPU; what is resident is on working GPUs only."""
    resident, expert = sizes(instance)
    used = np.full(instance.gpus, resident)
    used[list(instance.placement.failed_gpus)] = 0.0
    for gpu, shards in Counter(gpu for _, gpu in _existing(instance, replicas)).items():
        used[gpu] += shards * expert
    return used


def check_memory(instance: Instance, used: npt.NDArray[np.float64]) -> Iterator[Violation]:
    """Rule ``memory``: the experts of all layers and what is resident fit; rule ``failed`` is about the other GPUs."""
    failed = set(instance.placement.failed_gpus)
    for gpu in range(instance.gpus):
        if gpu not in failed and not fits_memory(instance, gpu, float(used[gpu])):
            message = f"{used[gpu] / GB:.6g} GB used, required are at most {memory_of(instance, gpu):.6g} GB"
            yield Violation("memory", message, gpu=gpu)


def check_apart(instance: Instance, replicas: Sequence[Replica]) -> Iterator[Violation]:
    """Rule ``apart``: replicas of one expert are on different GPUs, or nodes, or anywhere, as the instance asks."""
    apart = instance.placement.replicas_apart
    if apart == "none":
        return
    per_place = 1 if apart == "gpu" else instance.cluster.gpus_per_node
    first: dict[tuple[int, int, int], int] = {}
    for replica in replicas:
        places = sorted({gpu // per_place for gpu in replica.gpus if gpu < instance.gpus})
        met = [
            place
            for place in places
            if first.setdefault((replica.row, replica.expert, place), replica.replica) != replica.replica
        ]
        if met:
            other, word = first[replica.row, replica.expert, met[0]], "GPU" if apart == "gpu" else "node"
            message = f"on {word} {met[0]} like replica {other}, required are different {word}s"
            yield replica.violates("apart", message, met[0] if apart == "gpu" else None)


def check_survives(instance: Instance, replicas: Sequence[Replica]) -> Iterator[Violation]:
    """Rule ``survives``: whichever GPU, node or leaf fails, every expert has a replica of which no shard was there."""
    kind = instance.placement.survives
    if kind == "none":
        return
    gpus = {"gpu": 1, "node": instance.cluster.gpus_per_node, "leaf": _gpus_of_leaf(instance)}[kind]
    touched: dict[tuple[int, int], list[set[int]]] = {}
    for replica in replicas:
        places = {gpu // gpus for gpu in replica.gpus if gpu < instance.gpus}
        touched.setdefault((replica.layer, replica.expert), []).append(places)
    for (layer, expert), own in sorted(touched.items()):
        for place in sorted(set.intersection(*own)):
            found = f"all its {len(own)} replicas are on {kind} {place}" if len(own) > 1 else f"only on {kind} {place}"
            yield Violation("survives", f"{found}, required is one that survives it", layer, expert)


def _gpus_of_leaf(instance: Instance) -> int:
    fabric = instance.cluster.fabric
    nodes = fabric.nodes_per_leaf if isinstance(fabric, FatTree | ThreeLevelTree) else instance.cluster.nodes
    return nodes * instance.cluster.gpus_per_node


def check_failed(instance: Instance, replicas: Sequence[Replica]) -> Iterator[Violation]:
    """Rule ``failed``: failed GPUs hold nothing."""
    failed = set(instance.placement.failed_gpus)
    for replica, gpu in _existing(instance, replicas):
        if gpu in failed:
            yield replica.violates("failed", f"on failed GPU {gpu}, required is a GPU that works", gpu)


def check_pinned(instance: Instance, replicas: Sequence[Replica]) -> Iterator[Violation]:
    """Rule ``pinned``: a pinned replica is where it is pinned."""
    if not instance.placement.pinned:
        return
    pins = {(pin.layer, pin.expert, pin.replica): pin.gpu for pin in instance.placement.pinned}
    for replica in replicas:
        gpu = pins.get((replica.layer, replica.expert, replica.replica))
        if gpu is not None and gpu not in replica.gpus:
            found = ", ".join(map(shown, replica.gpus)) or "none"
            yield replica.violates("pinned", f"on GPU {found}, required is GPU {gpu}, where it is pinned", gpu)
