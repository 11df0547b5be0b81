"""The layers of a placement as one table of slots, so that a step in all of them is a few calls of NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import count_replicas, placed
from moe_placer.replan.curve import LayerStart

__all__ = ["SlotTable", "Snapshot", "Step"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BLOCK = 64  # snapshots whose links are computed together


@dataclass(frozen=True)
class Step:
    """One change each in R layers.

    Attributes
    ----------
    rows : int array [R]
        Layers, each at most once.
    hot, slot : int array [R]
        GPU and slot of what goes elsewhere.
    gpu, other : int array [R]
        GPU and slot that it exchanges places with, or that ``new`` takes.
    new : int array [R]
        Kind of which one more replica takes that slot, and what is there goes; -1: an exchange.
    """

    rows: Ints
    hot: Ints
    slot: Ints
    gpu: Ints
    other: Ints
    new: Ints

    def only(self, which: Bools) -> Step:
        """Return some of them."""
        return Step(*(value[which] for value in vars(self).values()))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One layer on the way: its moves, the tokens of its busiest GPU, and what its slots hold [G, S]."""

    row: int
    moves: int
    busiest_gpu: float
    kind: Ints


class SlotTable:
    """What every slot of every GPU holds, in all layers: L layers, G GPUs, S slots of the GPU with most, E experts.

    A slot holds a kind: an expert where the number of replicas is a choice, for its replicas are alike; else an item.

    Attributes
    ----------
    kind : int array [L, G, S]
        -1: free, or no slot.
    fixed : bool array [L, G, S]
        What is no slot, or holds a pinned item.
    tokens : float array [L, kinds]
        Tokens per step of all replicas of a kind together.
    count : int array [L, kinds]
        Replicas of each kind.
    expert : int array [L, kinds]
        Expert of each kind.
    held, on : int8 array [L, E, G]
        Replicas that GPUs hold in the current placement, and now.
    each : float array [L, G, S]
        Tokens of what is in each slot.
    load : float array [L, G]
        Tokens per step of each GPU, those of a slow one as many times as it takes longer.
    slowness : float array [G]
        How many times as long each GPU takes for a token.
    node : int array [G]
        Node of each GPU.
    together : int array [L, nodes]
        Replicas of one expert that a node may hold.
    """

    def __init__(self, starts: Sequence[LayerStart], slowness: Floats | None) -> None:
        self.starts, first = starts, starts[0].layer
        self.of_experts = first.replicas_are_free
        self.held = np.stack([start.held for start in starts]).astype(np.int8)
        layers, experts, gpus = self.held.shape
        self.slowness = np.ones(gpus) if slowness is None else slowness
        self.node = np.arange(gpus) // (gpus // first.nodes)
        self.together = np.stack([start.layer.together for start in starts])
        slots = np.stack([start.slots for start in starts])
        kinds = experts if self.of_experts else max(start.layer.items for start in starts)
        self.kind = np.full((layers, gpus, int(slots.max())), -1, dtype=np.int64)
        self.fixed = np.arange(self.kind.shape[2]) >= slots[:, :, None]
        self.tokens, self.count = np.zeros((layers, kinds)), np.ones((layers, kinds), dtype=np.int64)
        self.expert = np.zeros((layers, kinds), dtype=np.int64)
        self._delta = np.zeros((layers, kinds, *first.delta.shape[1:]))
        for row, start in enumerate(starts):
            self._fill(row, start)
        self.on = np.zeros_like(self.held)
        at, gpu, slot = np.nonzero(self.kind >= 0)
        np.add.at(self.on, (at, self.expert[at, self.kind[at, gpu, slot]], gpu), 1)
        self._moves = np.maximum(0, self.on - self.held).sum(axis=1, dtype=np.int64)  # [L, G]
        self.each, self.load = np.zeros(self.kind.shape), np.zeros((layers, gpus))
        self._weigh(np.arange(layers))

    def _fill(self, row: int, start: LayerStart) -> None:
        layer, order = start.layer, np.argsort(start.place, kind="stable")
        place = start.place[order]
        slot = np.arange(len(order)) - np.searchsorted(place, place)
        everything = np.arange(layer.items)
        self.kind[row, place, slot] = (layer.expert if self.of_experts else everything)[order]
        self.fixed[row, place, slot] |= layer.pinned[order] >= 0
        one_of = np.flatnonzero(layer.replica == 0) if self.of_experts else everything
        replicas = count_replicas(layer) if self.of_experts else np.ones(layer.items, dtype=np.int64)
        kinds = slice(len(replicas))
        self.count[row, kinds], self.expert[row, kinds] = replicas, layer.expert[one_of]
        self.tokens[row, kinds] = layer.load[one_of] * replicas
        self._delta[row, kinds] = layer.delta[one_of] * replicas[:, None, None]

    def _weigh(self, rows: Ints) -> None:
        kind = self.kind[rows].reshape(len(rows), self.kind[0].size)
        each = np.take_along_axis(self.tokens[rows] / self.count[rows], np.maximum(kind, 0), axis=1)
        each[kind < 0] = 0.0
        self.each[rows] = each.reshape(len(rows), *self.kind.shape[1:])
        self.load[rows] = self.each[rows].sum(axis=2) * self.slowness

    @property
    def moves(self) -> Ints:
        """Replicas [L] that are not where the current placement has one."""
        return np.asarray(self._moves.sum(axis=1))

    def apply(self, step: Step) -> Step:
        """Make changes; return what undoes them."""
        rows, gpu, other = step.rows, step.gpu, step.other
        mine, theirs = self.kind[rows, step.hot, step.slot], self.kind[rows, gpu, other]
        swaps = step.new < 0
        self._put(step.only(swaps), mine[swaps], theirs[swaps])
        self.kind[rows[~swaps], gpu[~swaps], other[~swaps]] = step.new[~swaps]
        back = np.where(swaps, -1, theirs)
        for what, sign in ((step.new, 1), (theirs, -1)):
            some = rows[~swaps], what[~swaps]
            self.count[some] += sign
            self.on[rows[~swaps], self.expert[some], gpu[~swaps]] += np.int8(sign)
        for where in (step.hot, gpu):
            pairs = rows, slice(None), where
            self._moves[rows, where] = np.maximum(0, self.on[pairs] - self.held[pairs]).sum(axis=1, dtype=np.int64)
        self._weigh(rows)
        return Step(rows, step.hot, step.slot, gpu, other, back)

    def _put(self, step: Step, mine: Ints, theirs: Ints) -> None:
        rows = step.rows
        for kind, here, there in ((mine, step.hot, step.gpu), (theirs, step.gpu, step.hot)):
            real = kind >= 0
            expert = self.expert[rows[real], kind[real]]
            self.on[rows[real], expert, here[real]] -= 1
            self.on[rows[real], expert, there[real]] += 1
        self.kind[rows, step.hot, step.slot], self.kind[rows, step.gpu, step.other] = theirs, mine

    def snapshot(self, row: int, moves: int, busiest_gpu: float) -> Snapshot:
        """Return what a layer is now."""
        return Snapshot(row, moves, busiest_gpu, self.kind[row].astype(np.int32))

    def z(self, snapshots: Sequence[Snapshot]) -> Floats:
        """Cost of the busiest link of each snapshot."""
        blocks = [snapshots[at : at + _BLOCK] for at in range(0, len(snapshots), _BLOCK)]
        return np.concatenate([self._z(block) for block in blocks]) if blocks else np.zeros(0)

    def _z(self, snapshots: Sequence[Snapshot]) -> Floats:
        row, kinds = np.array([one.row for one in snapshots]), np.stack([one.kind for one in snapshots])
        at, gpu, slot = np.nonzero(kinds >= 0)
        kind, first = kinds[at, gpu, slot], self.starts[0].layer
        width = self.tokens.shape[1]
        count = np.maximum(1, np.bincount(at * width + kind, minlength=len(row) * width))
        brought = self._delta[row[at], kind, self.node[gpu]] / count[at * width + kind][:, None]
        links = at[:, None] * (first.links + 1) + first.affected[self.node[gpu]]
        total = np.bincount(links.ravel(), brought.ravel(), minlength=len(row) * (first.links + 1))
        base = np.stack([self.starts[one].layer.base for one in row])
        return np.asarray((base + total.reshape(len(row), -1)[:, :-1]).max(axis=1, initial=0.0))

    def build(self, snapshot: Snapshot) -> tuple[LayerProblem, Ints]:
        """Return the layer of a snapshot, and the GPU of each of its items."""
        start, kinds = self.starts[snapshot.row], snapshot.kind
        gpu, slot = np.nonzero(kinds >= 0)
        if not self.of_experts:
            place = np.empty(start.layer.items, dtype=np.int64)
            place[kinds[gpu, slot]] = gpu
            return start.layer, place
        first = np.argsort(~self.fixed[snapshot.row, gpu, slot], kind="stable")  # replica 0 has the pin
        of_expert: list[list[int]] = [[] for _ in range(self.held.shape[1])]
        for expert, at in zip(kinds[gpu, slot][first].tolist(), gpu[first].tolist(), strict=True):
            of_expert[expert].append(at)
        return placed(start.layer, of_expert)
