"""Which share of each node's tokens the replicas of an expert get, under rules that prefer near ones.

A token's replica then depends on where all replicas of its expert are, and on no other expert, but for SGLang's static
map: its ranks draw, and the draws go on from expert to expert and from layer to layer. What they come to on average is
what `sglang-dynamic` does, which searches go by; what is stated is counted with the draws.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance

__all__ = ["NearRule", "near_rule"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SEED = 42  # of every rank of SGLang


@dataclass(frozen=True, eq=False)
class NearRule:
    """One rule, and what it counts.

    Attributes
    ----------
    rule : str
        ``nearest``, ``sglang-static`` or ``sglang-dynamic``.
    hops : int array [nodes, nodes]
        Links on the way; only ``nearest`` looks at them.
    gpus_per_node, experts : int
        Ranks are GPUs.
    moe_layers : tuple of int
        Index in the model of each MoE layer.
    model_layers : int
        Layers of the model, dense ones counted.
    """

    rule: str
    hops: Ints
    gpus_per_node: int
    experts: int
    moe_layers: tuple[int, ...]
    model_layers: int

    @property
    def draws(self) -> bool:
        """Whether ranks draw once for all, so that what a layer sends depends on the layers before it."""
        return self.rule == "sglang-static"

    def of_nodes(self, held: Ints) -> Floats:
        """Share [..., nodes, nodes] of each node's tokens that go to each node, on average over draws.

        ``held`` [..., nodes] counts an expert's replicas on each node; there is at least one.
        """
        if self.rule == "nearest":
            way = np.where(held[..., None, :] > 0, self.hops, np.iinfo(np.int64).max)
            taken = np.where(way == way.min(axis=-1, keepdims=True), held[..., None, :], 0)
            return np.asarray(taken / taken.sum(axis=-1, keepdims=True))
        anywhere = (held / held.sum(axis=-1, keepdims=True))[..., None, :]
        return np.asarray(np.where(held[..., :, None] > 0, np.eye(held.shape[-1]), anywhere))

    def on_gpus(self, on: Bools, tokens: Floats) -> Floats:
        """Tokens per step on each GPU [..., GPUs], on average over draws.

        Parameters
        ----------
        on : bool array [..., GPUs]
            Which GPUs have a replica of an expert.
        tokens : float array [..., nodes]
            Of each node, for the expert.
        """
        size = self.gpus_per_node
        by_node = on.reshape(*on.shape[:-1], on.shape[-1] // size, size)  # in numbers, for there may be no rows
        held = by_node.sum(axis=-1)
        if self.rule == "nearest":
            arriving = (tokens[..., None, :] @ self.of_nodes(held))[..., 0, :]
            each = arriving / np.maximum(held, 1)
            return np.asarray((by_node * each[..., None]).reshape(on.shape))
        count = held.sum(axis=-1, keepdims=True)
        far = ((tokens * (held == 0)).sum(axis=-1, keepdims=True) / count)[..., None]
        alone = (held == count)[..., None]  # then ranks beside it draw among all of them
        first = by_node & (by_node.cumsum(axis=-1) == 1)
        others = (size - held)[..., None] * np.where(alone, 1 / count[..., None], first)
        return np.asarray((by_node * (far + tokens[..., None] / size * (1 + others))).reshape(on.shape))

    def exact(self, layers: Sequence[tuple[Ints, Ints]]) -> list[Floats]:
        """Share [nodes, items] of each node's tokens that each item gets, in every MoE layer, draws included.

        Parameters
        ----------
        layers : sequence of (int array [items], int array [items])
            Expert and GPU of each item, of all MoE layers in order.
        """
        sorted_ = [np.lexsort((gpu, expert)) for expert, gpu in layers]
        if self.draws:
            picks = self._drawn([(e[order], g[order]) for (e, g), order in zip(layers, sorted_, strict=True)])
        found = []
        for row, ((expert, gpu), order) in enumerate(zip(layers, sorted_, strict=True)):
            share = np.empty((len(self.hops), len(expert)))
            share[:, order] = picks[row] if self.draws else self._expected(expert[order], gpu[order])
            found.append(share)
        return found

    def _expected(self, expert: Ints, gpu: Ints) -> Floats:
        """Share [nodes, items] of items sorted by expert and GPU, on average over draws."""
        on = np.zeros((self.experts, len(self.hops) * self.gpus_per_node), dtype=bool)
        on[expert, gpu] = True
        used = np.unique(expert)
        share = np.zeros((len(self.hops), *on.shape))
        for source in range(len(self.hops)):
            share[source, used] = self.on_gpus(on[used], np.eye(len(self.hops))[source])
        return share[:, expert, gpu]

    def near(self, expert: Ints, gpu: Ints) -> Ints:
        """Item that each rank of SGLang takes without a draw, -1 where it draws [GPUs, experts]; items are sorted."""
        size = self.gpus_per_node
        taken = np.full((len(self.hops) * size, self.experts), -1, dtype=np.int64)
        count = np.bincount(expert, minlength=self.experts)
        for item in range(len(expert) - 1, -1, -1):  # the first on a node last
            node, own = int(gpu[item]) // size, int(expert[item])
            beside = (expert == own) & (gpu // size == node)
            if beside.sum() < count[own]:
                taken[node * size : (node + 1) * size, own] = item
        for item in np.flatnonzero(count[expert] == 1).tolist():
            taken[:, expert[item]] = item
        there = np.flatnonzero(gpu < len(taken))[::-1]  # slots of dense layers may be beyond the last GPU
        taken[gpu[there], expert[there]] = there
        return taken

    def _drawn(self, layers: Sequence[tuple[Ints, Ints]]) -> list[Floats]:
        """Return what `exact` does of items sorted by expert and GPU, rank by rank of SGLang (static)."""
        ranks = len(self.hops) * self.gpus_per_node
        rows = {layer: row for row, layer in enumerate(self.moe_layers)}
        near = [self.near(*layer) for layer in layers]
        decks = [self._deck(layer[0], taken) for layer, taken in zip(layers, near, strict=True)]
        slots = len(layers[0][0])
        row_of_dense = np.arange(slots) % self.experts, np.arange(slots) // max(1, slots // ranks)
        order = np.lexsort(row_of_dense[::-1])
        dense_layer = row_of_dense[0][order], row_of_dense[1][order]
        dense = self._deck(dense_layer[0], self.near(*dense_layer))
        for rank in range(ranks):
            draw = random.Random(_SEED)  # noqa: S311  # the engine's own numbers
            for index in range(self.model_layers):
                row = rows.get(index)
                for expert, own, place in dense if row is None else decks[row]:
                    if rank not in place:
                        continue
                    whole, rest = divmod(len(place), len(own))
                    cards = own * whole + draw.sample(own, k=rest)
                    draw.shuffle(cards)
                    if row is not None:
                        near[row][rank, expert] = cards[place[rank]]
        shares = []
        for (of_item, _), taken in zip(layers, near, strict=True):
            mine = taken[:, of_item] == np.arange(len(of_item))
            shares.append(np.asarray(mine.reshape(len(self.hops), self.gpus_per_node, -1).mean(axis=1)))
        return shares

    @staticmethod
    def _deck(expert: Ints, near: Ints) -> list[tuple[int, list[int], dict[int, int]]]:
        """List what is dealt in a layer: expert, its items, and the place of each rank that draws among those."""
        found = []
        for e in np.flatnonzero((near < 0).any(axis=0)).tolist():
            ranks = np.flatnonzero(near[:, e] < 0).tolist()
            own = np.flatnonzero(expert == e).tolist()
            if own:
                found.append((e, own, {rank: place for place, rank in enumerate(ranks)}))
        return found


def near_rule(instance: Instance, hops: Ints) -> NearRule | None:
    """Return the rule of an instance; None where it does not prefer near replicas.

    ``hops`` [nodes, nodes] are links between nodes.
    """
    placement = instance.placement
    if not placement.prefers_near:
        return None
    return NearRule(
        rule=placement.replica_routing,
        hops=hops,
        gpus_per_node=instance.cluster.gpus_per_node,
        experts=instance.model.experts,
        moe_layers=instance.moe_layers,
        model_layers=instance.model.layers,
    )
