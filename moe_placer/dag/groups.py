"""The GPUs that serve, their tensor-parallel groups, and the tokens that each group attends to.

One fact decides it for all drawings and for the schedule: a GPU serves if it has not failed. Where a whole node has
failed, all of its GPUs count as serving: the placement model starts tokens on every node, and its links carry them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from moe_placer.instance import Instance

__all__ = ["TpGroup", "find_tp_groups", "first_gpu", "lost_nodes", "node_gpus", "ring"]


@dataclass(frozen=True)
class TpGroup:
    """GPUs that share attention, dense MLPs and embeddings: a tensor-parallel group, as far as it serves.

    Attributes
    ----------
    index : int
        Of the group: its GPUs are among the index-th ``attention_tp`` ones.
    group : int
        DP group that its first node belongs to.
    gpus : tuple of int
        Those that serve; never empty.
    tokens : dict
        Node to tokens that start there and that the TP group attends to. On each of these nodes it has a GPU that
        serves.
    shares : bool
        Whether tensor parallelism divides its work, and results are to be summed. It does so for all TP groups or for
        none, however many GPUs a TP group has left.
    """

    index: int
    group: int
    gpus: tuple[int, ...]
    tokens: dict[int, float]
    shares: bool

    @property
    def head(self) -> tuple[int]:
        """The GPU that gates for the TP group."""
        return (self.gpus[0],)

    @property
    def total(self) -> float:
        """Tokens of all its nodes."""
        return sum(self.tokens.values())


def find_tp_groups(instance: Instance) -> list[TpGroup]:
    """Divide the GPUs into TP groups of ``attention_tp`` neighbours; the last one may be smaller.

    A group of which no GPU serves on a node is no TP group there: its users go to the TP groups that have GPUs on this
    node, in proportion to how many.
    """
    per_node, size = instance.cluster.gpus_per_node, instance.parallelism.attention_tp
    tokens: dict[int, dict[int, float]] = defaultdict(dict)
    members: dict[int, list[int]] = defaultdict(list)
    for node in range(instance.cluster.nodes):
        here: dict[int, list[int]] = defaultdict(list)
        for gpu in node_gpus(instance, node):
            here[gpu // size].append(gpu)
        of_group = {g: len(_overlap(g * size, (g + 1) * size, node * per_node, (node + 1) * per_node)) for g in here}
        stranded = (per_node - sum(of_group.values())) / sum(map(len, here.values()))
        for g, gpus in here.items():
            tokens[g][node] = (of_group[g] + stranded * len(gpus)) * instance.traffic.tokens_per_gpu
            members[g] += gpus
    dp, nodes, shares = instance.parallelism.dp, instance.cluster.nodes, min(size, instance.gpus) > 1
    return [TpGroup(g, min(tokens[g]) * dp // nodes, tuple(members[g]), tokens[g], shares) for g in sorted(tokens)]


def node_gpus(instance: Instance, node: int) -> tuple[int, ...]:
    """GPUs of a node that serve: those that work; all of them where none does."""
    size = instance.cluster.gpus_per_node
    return _working(instance, range(node * size, (node + 1) * size))


def lost_nodes(instance: Instance) -> list[int]:
    """Nodes of which every GPU has failed."""
    per_node, failed = instance.cluster.gpus_per_node, set(instance.placement.failed_gpus)
    return [n for n in range(instance.cluster.nodes) if failed.issuperset(range(n * per_node, (n + 1) * per_node))]


def first_gpu(instance: Instance) -> int:
    """Return the GPU where the step's tokens arrive and leave: the first one that works."""
    return _working(instance, range(instance.gpus))[0]


def ring(nodes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Pairs of neighbours that a ring collective over these nodes sends between; none for one node."""
    order = sorted(set(nodes))
    return tuple(zip(order, order[1:] + order[:1], strict=True)) if len(order) > 1 else ()


def _working(instance: Instance, ids: range) -> tuple[int, ...]:
    failed = set(instance.placement.failed_gpus)
    return tuple(gpu for gpu in ids if gpu not in failed) or tuple(ids)


def _overlap(first: int, end: int, low: int, high: int) -> range:
    return range(max(first, low), min(end, high))
