"""Who works together: tensor-parallel groups, the GPUs of a node, and the tokens that start on each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moe_placer.instance import Instance

__all__ = ["Crew", "find_crews", "first_gpu", "node_gpus", "ring"]


@dataclass(frozen=True)
class Crew:
    """GPUs that share attention, dense MLPs and embeddings: a tensor-parallel group.

    Attributes
    ----------
    index : int
    group : int
        DP group that its first node belongs to.
    gpus : tuple of int
        Those that work; all of them where none does, since their users are still there.
    tokens : dict
        Node to tokens that start on the crew's GPUs there, failed ones included.
    """

    index: int
    group: int
    gpus: tuple[int, ...]
    tokens: dict[int, float]

    @property
    def head(self) -> tuple[int]:
        """The GPU that gates for the crew."""
        return (self.gpus[0],)

    @property
    def total(self) -> float:
        """Tokens of all its nodes."""
        return sum(self.tokens.values())


def find_crews(instance: Instance) -> list[Crew]:
    """Divide the GPUs into crews of ``attention_tp`` neighbours; the last one may be smaller."""
    cluster, size = instance.cluster, instance.parallelism.attention_tp
    crews = []
    for index, first in enumerate(range(0, instance.gpus, size)):
        ids = range(first, min(first + size, instance.gpus))
        tokens: dict[int, float] = {}
        for gpu in ids:
            node = gpu // cluster.gpus_per_node
            tokens[node] = tokens.get(node, 0.0) + instance.traffic.tokens_per_gpu
        group = min(tokens) * instance.parallelism.dp // cluster.nodes
        crews.append(Crew(index, group, _working(instance, ids), tokens))
    return crews


def node_gpus(instance: Instance, node: int) -> tuple[int, ...]:
    """GPUs of a node that work; all of them where none does."""
    size = instance.cluster.gpus_per_node
    return _working(instance, range(node * size, (node + 1) * size))


def first_gpu(instance: Instance) -> int:
    """Return the GPU where the step's tokens arrive and leave: the first one that works."""
    return _working(instance, range(instance.gpus))[0]


def ring(nodes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Pairs of neighbours that a ring collective over these nodes sends between; none for one node."""
    order = sorted(set(nodes))
    return tuple(zip(order, order[1:] + order[:1], strict=True)) if len(order) > 1 else ()


def _working(instance: Instance, ids: Iterable[int]) -> tuple[int, ...]:
    failed = set(instance.placement.failed_gpus)
    return tuple(gpu for gpu in ids if gpu not in failed) or tuple(ids)
