"""What GPUs hold now: checked against the instance, and as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.errors import InputError, Mistake
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.solve.warm_start import find_slots

__all__ = ["Current", "check_layer", "read_current", "wrong"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Current:
    """The placement that runs now.

    Attributes
    ----------
    problem : Problem
        The instance's, with the replicas of each expert that run now, and with slots that these fit in.
    gpu : tuple of int arrays [items]
        Per MoE layer, the GPU of each item.
    kept : tuple of int arrays [experts, GPUs] or None
        Per MoE layer, the replicas that GPUs have the weights of; None: all of them. Others have to come first.
    """

    problem: Problem
    gpu: tuple[Ints, ...]
    kept: tuple[Ints, ...] | None = None

    def has_weights(self, index: int) -> npt.NDArray[np.bool_]:
        """Mask of the items [items] whose GPU has their weights."""
        if self.kept is None:
            return np.ones(len(self.gpu[index]), dtype=bool)
        expert, _ = self.problem.items(index)
        return np.asarray(self.kept[index][expert, self.gpu[index]] > 0)

    def held(self, index: int, per_place: int = 1) -> Ints:
        """Count the replicas of each expert on each place of so many GPUs [experts, places]."""
        if self.kept is not None:
            return np.asarray(self.kept[index].reshape(len(self.kept[index]), -1, per_place).sum(axis=2))
        expert, _ = self.problem.items(index)
        places = len(self.problem.capacity.memory_slots) // per_place
        held = np.zeros((self.problem.replicas.shape[1], places), dtype=np.int64)
        np.add.at(held, (expert, self.gpu[index] // per_place), 1)
        return held


def read_current(problem: Problem, placement: Placement) -> Current:
    """Read the current placement; the problem takes its replicas where their number is a choice.

    Raises
    ------
    InputError
        It is of another model or cluster, or breaks slots, memory, pins, distances or the number of replicas.
    """
    replicas = _count_replicas(problem, placement)
    if problem.capacity.binds:
        kept = find_slots(problem, placement)
        if kept is None:
            raise wrong("more experts on a GPU than its slots or memory hold", "a current placement that fits")
        problem = replace(problem.with_slots(kept), slots_are_given=False)
    problem = replace(problem, replicas=replicas)
    rows = []
    for index in range(len(problem)):
        expert, replica = problem.items(index)
        pairs = zip(expert.tolist(), replica.tolist(), strict=True)
        row = placement.gpu[index]
        own = [row[e][r] for e, r in pairs]
        gpu = np.array([one if isinstance(one, int) else one[0] for one in own], dtype=np.int64)
        check_layer(problem, index, problem.layer(index), gpu)
        rows.append(gpu)
    return Current(problem, tuple(rows))


def _count_replicas(problem: Problem, placement: Placement) -> Ints:
    """Count replicas [MoE layers, experts]; they must be as many as the instance asks for, or as its budget allows."""
    layers, experts = problem.replicas.shape
    if len(placement.gpu) != layers:
        raise wrong(f"{len(placement.gpu)} MoE layers", f"{layers}, as {problem.name} has")
    rows = []
    for index, (row, usual) in enumerate(zip(placement.gpu, problem.replicas, strict=True)):
        where = f"in layer {problem.moe_layers[index]}"
        if len(row) != experts:
            raise wrong(f"{len(row)} experts {where}", f"{experts}, as {problem.name} has")
        own = np.array([len(gpus) for gpus in row])
        if (own < 1).any():
            raise wrong(f"no replica of expert {int(own.argmin())} {where}", "at least one of every expert")
        shared = problem.redundant_in_all is not None
        if not problem.replicas_are_free and (own != usual).any():
            raise wrong(f"other numbers of replicas {where}", f"those of {problem.name}")
        if problem.replicas_are_free and not shared and own.sum() != usual.sum():
            raise wrong(f"{own.sum()} replicas {where}", f"{usual.sum()}, as the budget of {problem.name} gives")
        rows.append(own)
    replicas = np.stack(rows)
    if problem.redundant_in_all is not None and (replicas - 1).sum() > problem.redundant_in_all:
        found = f"{(replicas - 1).sum():,} redundant replicas over all layers"
        raise wrong(found, f"at most the {problem.redundant_in_all:,} of {problem.name}")
    return replicas


def check_layer(problem: Problem, index: int, layer: LayerProblem, gpu: Ints) -> None:
    """Refuse a layer that breaks a rule: what is moved starts from a placement that may run.

    Parameters
    ----------
    problem : Problem
        With slots that hold what runs.
    index : int
        Of the layer among MoE layers.
    layer : LayerProblem
        That layer, with the replicas that run.
    gpu : int array
        GPU of each item [items].

    Raises
    ------
    InputError
        Slots, pins or distances between replicas do not hold.
    """
    where = f"in layer {problem.moe_layers[index]}"
    gpus = len(problem.capacity.memory_slots)
    if gpu.max() >= gpus:
        raise wrong(f"GPU {gpu.max()} {where}", f"GPUs 0 to {gpus - 1}")
    held = np.bincount(gpu, minlength=gpus)
    over = np.flatnonzero(held > problem.capacity.slots[index])
    if len(over):
        room = int(problem.capacity.slots[index][over[0]])
        raise wrong(f"{held[over[0]]} experts on GPU {over[0]} {where}", f"at most {room}")
    pins = [(e, r, g) for (row, e, r), g in problem.pinned.items() if row == index]
    at = {(int(e), int(r)): int(g) for e, r, g in zip(layer.expert, layer.replica, gpu, strict=True)}
    moved = [(e, r, g) for e, r, g in pins if at.get((e, r)) != g]
    if moved:
        e, r, g = moved[0]
        raise wrong(f"replica {r} of expert {e} {where} on GPU {at.get((e, r))}", f"GPU {g}, where it is pinned")
    if not layer.valid(gpu // problem.gpus_per_node):
        raise wrong(f"replicas of one expert {where} that are too close", "replicas as far apart as the instance asks")


def wrong(found: str, expected: str) -> InputError:
    """Return the error that names the current placement."""
    return InputError(Mistake(found, expected, "current"))
