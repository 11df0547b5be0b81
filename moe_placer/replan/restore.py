"""What is left of a placement once GPUs are out of service, and the replicas that have to come back first.

Every expert has a replica before any has a second one, and all have as many as the instance asks for before load is
balanced. Where slots have become fewer, replicas go whose expert gets least hot by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InfeasibleError, NothingFoundError
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.replan.current import Current, check_layer, wrong
from moe_placer.replan.trades import Goal

__all__ = ["Loss", "read_survivors"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Held = list[tuple[int, int]]  # (replica index before, GPU) of an expert


@dataclass(frozen=True)
class Loss:
    """What went out of service with its GPUs.

    Attributes
    ----------
    gpus : tuple of int
        GPUs that failed; what they held is gone.
    drained : tuple of int
        GPUs that give away what they hold.
    replicas : int
        On both.
    gone : tuple of (layer, expert)
        Experts of which no GPU has the weights any more; layer is the index in the model.
    restored : int
        Replicas that come back, or come instead: the least number of moves.
    dropped : int
        Replicas that go, since slots have become fewer or an expert that was gone needs them.
    """

    gpus: tuple[int, ...]
    drained: tuple[int, ...]
    replicas: int
    gone: tuple[tuple[int, int], ...]
    restored: int
    dropped: int


def read_survivors(
    problem: Problem,
    placement: Placement,
    failed: frozenset[int],
    drained: frozenset[int],
    goal: Goal,
    most: int | None,
) -> tuple[Current, Loss]:
    """Return the placement with what is left of it where it is, and what has to come back added.

    Parameters
    ----------
    problem : Problem
        Of the instance as it is now, without the GPUs that are out of service.
    placement : Placement
        As it ran.
    failed, drained : frozenset of int
        GPUs that are out of service.
    goal : Goal
        By which places of what comes back are chosen.
    most : int or None
        Moves that the budget allows.

    Raises
    ------
    InputError
        The placement is of another model or cluster, or breaks a rule.
    InfeasibleError
        More replicas have to come back than the budget has moves.
    NothingFoundError
        What has to come back finds no place beside what is left.
    """
    if len(placement.gpu) != len(problem) or any(len(row) != problem.replicas.shape[1] for row in placement.gpu):
        raise wrong("a placement of another model", f"the layers and experts of {problem.name}")
    away, gpus = failed | drained, len(problem.capacity.memory_slots)
    rows = [[_left(placement, index, e, away) for e in range(len(row))] for index, row in enumerate(placement.gpu)]
    if any(gpu >= gpus for row in rows for held in row for _, gpu in held):
        raise wrong("GPUs that are not there", f"GPUs 0 to {gpus - 1}")
    before = sum(len(gpus) for row in placement.gpu for gpus in row)
    replicas, restored, dropped = np.zeros_like(problem.replicas), 0, 0
    spare = _spare_moves(problem, rows, most)
    for index, row in enumerate(rows):
        counted = np.array([len(held) for held in row])
        there = int(np.maximum(counted, problem.least_replicas).sum())
        replicas[index] = _replicas_of(problem, index, row, min(sum(map(len, placement.gpu[index])), there + spare))
        spare -= max(0, int(replicas[index].sum()) - there)
        restored += int(np.maximum(0, replicas[index] - counted).sum())
        dropped += int(np.maximum(0, counted - replicas[index]).sum())
    if most is not None and restored > most:
        raise InfeasibleError(
            f"{restored:,} replicas have to come back to GPUs that work, but the budget allows only {most:,} moves: "
            "use a larger budget"
        )
    problem = replace(_with_room(problem, rows), replicas=replicas)
    found = [_Restored(problem, index, row, goal).run() for index, row in enumerate(rows)]
    lost = tuple(
        (problem.moe_layers[index], e)
        for index, row in enumerate(placement.gpu)
        for e, own in enumerate(row)
        if not _left(placement, index, e, failed) and own
    )
    loss = Loss(
        tuple(sorted(failed)), tuple(sorted(drained)), before - sum(len(held) for row in rows for held in row),
        lost, restored, dropped,
    )  # fmt: skip
    held = tuple(_count(row, gpus) for row in rows)
    return Current(problem, tuple(found), held), loss


def _spare_moves(problem: Problem, rows: Sequence[Sequence[Held]], most: int | None) -> int:
    """Return the moves that a budget leaves for replicas that need not come back: of those that layers share, any."""
    if most is None:
        return problem.replicas.size * len(problem.capacity.memory_slots)
    left = np.array([[len(held) for held in row] for row in rows])
    return max(0, most - int(np.maximum(0, problem.least_replicas - left).sum()))


def _left(placement: Placement, index: int, expert: int, away: frozenset[int]) -> Held:
    """List the replicas of an expert that are not on these GPUs."""
    shards = placement.shards(index, expert)
    return [(r, own[0]) for r, own in enumerate(shards) if own[0] not in away]


def _count(row: Sequence[Held], gpus: int) -> Ints:
    held = np.zeros((len(row), gpus), dtype=np.int64)
    for expert, own in enumerate(row):
        for _, gpu in own:
            held[expert, gpu] += 1
    return held


def _replicas_of(problem: Problem, index: int, row: Sequence[Held], before: int) -> Ints:
    """Return the replicas of each expert [experts]: those that are left, changed as little as the instance allows."""
    if not problem.replicas_are_free:
        return np.asarray(problem.replicas[index])
    load = problem.demand.load[index]
    replicas = np.array([len(held) for held in row])
    room = int(problem.capacity.node_slots[index].sum())
    shared = problem.redundant_in_all is not None
    total = min(before, room) if shared else int(problem.replicas[index].sum())
    least = problem.least_replicas
    replicas = np.maximum(replicas, least)
    most = int(problem.capacity.places.sum())
    while replicas.sum() > total:
        after = np.where(replicas > least, load / np.maximum(1, replicas - 1), np.inf)
        coolest = int(after.argmin())
        if not np.isfinite(after[coolest]):
            break
        replicas[coolest] -= 1
    while replicas.sum() < total:
        now = np.where(replicas < most, load / replicas, -1.0)
        replicas[int(now.argmax())] += 1
    return np.asarray(replicas)


def _with_room(problem: Problem, rows: Sequence[Sequence[Held]]) -> Problem:
    """Return the problem with slots that hold what is left; where memory binds, what room is left is spread."""
    capacity = problem.capacity
    if not capacity.binds:
        return problem
    slots = np.stack([_count(row, len(capacity.memory_slots)).sum(axis=0) for row in rows])
    if (slots.sum(axis=0) > capacity.usable).any():
        raise wrong("more experts on a GPU than its memory holds", "a current placement that fits")
    return replace(problem.with_slots(capacity.filled(slots)), slots_are_given=False)


class _Restored:
    """One layer, while replicas come back to it."""

    def __init__(self, problem: Problem, index: int, row: Sequence[Held], goal: Goal) -> None:
        self.problem, self.index, self.goal = problem, index, goal
        self.layer: LayerProblem = problem.layer(index)
        self.slots = problem.capacity.slots[index]
        self.gpu = np.full(self.layer.items, -1, dtype=np.int64)
        self.left = [len(own) for own in row]
        item = {(int(e), int(r)): i for i, (e, r) in enumerate(zip(self.layer.expert, self.layer.replica, strict=True))}
        for expert, own in enumerate(row):
            for at, gpu in self._kept(expert, own):
                self.gpu[item[expert, at]] = gpu

    def run(self) -> Ints:
        """Return the GPU of each item."""
        order = self._order()
        for i in order:
            gpu = self._best(i)
            if gpu is None:
                gpu = self._make_room(i)
            self.gpu[i] = gpu
        check_layer(self.problem, self.index, self.layer, self.gpu)
        return self.gpu

    def _kept(self, expert: int, own: Held) -> Held:
        """Give what is left of an expert its replica indices; where there are to be fewer, some of it may go."""
        count = int(self.problem.replicas[self.index][expert])
        if not self.problem.replicas_are_free and all(at < count for at, _ in own):
            return own
        pinned = {g for (row, e, _), g in self.problem.pinned.items() if (row, e) == (self.index, expert)}
        first = sorted(own, key=lambda one: (one[1] not in pinned, one[0]))[:count]
        return [(at, gpu) for at, (_, gpu) in enumerate(first)]

    def _order(self) -> list[int]:
        """List the items without a GPU: experts that have none left first, then the hottest."""
        return sorted(
            np.flatnonzero(self.gpu < 0).tolist(),
            key=lambda i: (self.left[self.layer.expert[i]] > 0, -self.layer.load[i], i),
        )

    def _allowed(self, i: int) -> npt.NDArray[np.bool_]:
        """Mask of GPUs [GPUs] on which no other replica of the expert is too close; a slot aside."""
        layer, per_node = self.layer, self.problem.gpus_per_node
        mine = np.flatnonzero((layer.expert == layer.expert[i]) & (self.gpu >= 0))
        gpus = len(self.slots)
        node = np.arange(gpus) // per_node
        close = np.bincount(self.gpu[mine] // per_node, minlength=layer.nodes) >= layer.together
        allowed = ~close[node]
        allowed[self.gpu[mine]] = False
        if layer.domain is not None and len(mine) == int((layer.expert == layer.expert[i]).sum()) - 1:
            domains = np.unique(layer.domain[self.gpu[mine] // per_node])
            if len(domains) == 1:  # all others would fail together
                allowed &= layer.domain[node] != domains[0]
        pin = self.problem.pinned.get((self.index, int(layer.expert[i]), int(layer.replica[i])))
        if pin is not None:
            allowed &= np.arange(gpus) == pin
        return allowed

    def _taken(self) -> Ints:
        return np.bincount(self.gpu[self.gpu >= 0], minlength=len(self.slots))

    def _best(self, i: int) -> int | None:
        """Return the GPU with a slot left on which the item costs least, if there is one."""
        able = np.flatnonzero(self._allowed(i) & (self._taken() < self.slots))
        return None if not len(able) else int(able[self._costs(i, able)])

    def _costs(self, i: int, able: Ints) -> int:
        """Return which of these GPUs is the best: the busiest link or GPU is what counts, then squares of all."""
        layer, goal = self.layer, self.goal
        placed = np.flatnonzero(self.gpu >= 0)
        load = np.bincount(self.gpu[placed], layer.load[placed], minlength=len(self.slots))
        slow = np.ones(len(self.slots)) if self.goal.slowness is None else self.goal.slowness
        loads = (load[able] + layer.load[i]) * slow[able]
        value, square = goal.gpus * loads, goal.gpus**2 * (loads**2 - (load[able] * slow[able]) ** 2)
        if goal.links:
            at = self.gpu[placed] // self.problem.gpus_per_node
            cost = np.append(layer.base, 0.0)
            np.add.at(cost, layer.affected[at].ravel(), layer.delta[placed, at].ravel())
            node = able // self.problem.gpus_per_node
            now = cost[layer.affected[node]]
            then = now + layer.delta[i, node]
            value = value + goal.links * then.max(axis=1)
            square = square + goal.links**2 * (then**2 - now**2).sum(axis=1)
        return int(np.lexsort((square, value))[0])

    def _make_room(self, i: int) -> int:
        """Return a GPU for the item from which another one has moved to where there is a slot."""
        may, taken = self._allowed(i), self._taken()
        for j in np.flatnonzero((self.gpu >= 0) & (self.layer.pinned < 0)).tolist():
            here = int(self.gpu[j])
            if not may[here]:
                continue
            self.gpu[j] = -1
            able = np.flatnonzero(self._allowed(j) & (taken < self.slots))
            if len(able):
                self.gpu[j] = int(able[self._costs(j, able)])
                return here
            self.gpu[j] = here
        layer, expert = self.layer.layer, int(self.layer.expert[i])
        raise NothingFoundError(
            f"expert {expert} of layer {layer} finds no place beside what is left, although one may exist: "
            "plan anew with `moe-placer solve`"
        )
