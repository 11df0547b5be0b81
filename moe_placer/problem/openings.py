"""Decides exactly whether slots, memory, pins and distances leave a placement, and what each GPU then takes.

    find  v[l, c, g] >= 0, whole: shards of class c of layer l on GPU g
    sum_g v[l, c, g]       = shards * replicas of the class               given, or at least one of each expert
    sum_c v[l, c, g]      <= slots of GPU g in layer l                    and at most as many as experts in the class
    sum_l,c v[l, c, g]    <= memory of GPU g                                memory over all layers
    v[l, c, g]            >= 1 where an expert of the class is pinned
    sum of v over a node   = shards * x[l, c, n],  v <= x                 shards: different GPUs of one node
    x (or v over a node)  <= experts in the class                         where replicas keep to different nodes

Experts are alike but for pins, so that a layer has one class of experts without pins, and one for each that has some. A
class can be divided among its experts evenly, or as unevenly as `moe_placer.problem.node_limits` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError

__all__ = ["Asked", "open_gpus"]

Ints = npt.NDArray[np.int64]

_SECONDS = 60.0
_INFEASIBLE = 2  # scipy's word for it


@dataclass(frozen=True, eq=False)
class Asked:
    """The replicas that have to be placed, and the slots and memory of the GPUs.

    Attributes
    ----------
    experts, shards, gpus_per_node : int
    least, most : int array [layers]
        Replicas of each layer.
    in_all : int
        Replicas that all layers may have together.
    least_of_expert : int
        Replicas that every expert must have, where these are a choice.
    dp : int or None
        Replicas of each expert; None where these are a choice.
    pins : sequence
        Per layer, the pairs (expert, GPU) that are pinned.
    apart : bool
        Whether replicas of one expert keep to different nodes.
    slots : int array [layers, GPUs]
        Shards that a GPU may take in one layer.
    memory_slots : int array [GPUs]
        The same over all layers.
    """

    experts: int
    shards: int
    gpus_per_node: int
    least: Ints
    most: Ints
    in_all: int
    least_of_expert: int
    dp: int | None
    pins: Sequence[Sequence[tuple[int, int]]]
    apart: bool
    slots: Ints
    memory_slots: Ints


def open_gpus(asked: Asked) -> Ints | None:
    """Return shards of each layer on each GPU [layers, GPUs] in some placement with the most replicas, or None.

    Raises
    ------
    NothingFoundError
        A minute did not suffice to decide that.
    """
    from scipy.optimize import milp  # here, for it is slow to import

    program = _Program(asked)
    if program.contradicts:
        return None
    solved = milp(**program.arguments(), options={"time_limit": _SECONDS})
    if solved.status == _INFEASIBLE:
        return None
    if solved.x is None:
        what = "slots, memory, pins and distances between replicas leave any placement"
        raise NothingFoundError(f"whether {what} was not decided in {_SECONDS:g} s")
    return program.shards_on_gpus(solved.x)


class _Program:
    """The integer program, row by row."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.entries: list[tuple[Ints, Ints, npt.NDArray[np.float64]]] = []
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.least: list[npt.NDArray[np.float64]] = []  # of variables
        self.most: list[npt.NDArray[np.float64]] = []
        self.variables = 0
        self.contradicts = False
        self.taken: list[tuple[int, Ints]] = []  # layer, and the variables of its GPUs, of each class
        for layer in range(len(asked.slots)):
            self._add_layer(layer)
        everything = np.concatenate([at for _, at in self.taken])
        self._row(everything, upper=asked.in_all * asked.shards)
        for gpu in np.flatnonzero(asked.memory_slots < asked.slots.sum(axis=0)).tolist():
            self._row(np.array([at[gpu] for _, at in self.taken]), upper=asked.memory_slots[gpu])

    def arguments(self) -> dict[str, Any]:
        """Return what `scipy.optimize.milp` takes."""
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint

        row, column, value = (np.concatenate(part) for part in zip(*self.entries, strict=True))
        matrix = sparse.csr_array((value, (row, column)), shape=(len(self.lower), self.variables))
        objective = np.zeros(self.variables)
        objective[np.concatenate([at for _, at in self.taken])] = -1.0
        return {
            "c": objective,
            "integrality": np.ones(self.variables),
            "bounds": Bounds(np.concatenate(self.least), np.concatenate(self.most)),
            "constraints": LinearConstraint(matrix, np.array(self.lower), np.array(self.upper)),
        }

    def shards_on_gpus(self, x: npt.NDArray[np.float64]) -> Ints:
        """Return shards of each layer on each GPU [layers, GPUs]."""
        shards = np.zeros(self.asked.slots.shape, dtype=np.int64)
        for layer, at in self.taken:
            shards[layer] += np.rint(x[at]).astype(np.int64)
        return shards

    def _add_layer(self, layer: int) -> None:
        asked = self.asked
        pins: dict[int, list[int]] = {}
        for expert, gpu in asked.pins[layer]:
            pins.setdefault(expert, []).append(gpu)
        free = asked.experts - len(pins)
        mine = [self._add_class(layer, 1, gpus) for gpus in pins.values()]
        mine += [self._add_class(layer, free, [])] if free else []
        self._row(np.concatenate(mine), asked.least[layer] * asked.shards, asked.most[layer] * asked.shards)
        for gpu in range(asked.slots.shape[1]):
            self._row(np.array([at[gpu] for at in mine]), upper=asked.slots[layer, gpu])

    def _add_class(self, layer: int, experts: int, pinned: Sequence[int]) -> Ints:
        """Add ``experts`` experts that are alike, and return the variables of their shards on each GPU."""
        asked = self.asked
        most = np.minimum(asked.slots[layer], experts)
        least = np.zeros(len(most), dtype=np.int64)
        np.add.at(least, list(pinned), 1)
        self.contradicts |= bool((least > most).any())  # a pin where nothing may be, or two replicas on one GPU
        if pinned and asked.shards == 1 and asked.most[layer] == asked.experts:  # its only replica
            most = least
        at = self._add(least, most)
        self.taken.append((layer, at))
        shards = experts * asked.shards
        self._row(at, shards * (asked.dp or asked.least_of_expert), np.inf if asked.dp is None else shards * asked.dp)
        for gpus in at.reshape(-1, asked.gpus_per_node):
            if asked.shards == 1:
                if asked.apart:
                    self._row(gpus, upper=experts)
                continue
            (replicas,) = self._add(np.zeros(1), np.full(1, experts if asked.apart else np.inf))
            ones = np.ones(len(gpus))
            self._row(np.append(gpus, replicas), 0.0, 0.0, np.append(ones, -asked.shards))
            for gpu in gpus:
                self._row(np.array([gpu, replicas]), upper=0.0, values=np.array([1.0, -1.0]))
        return at

    def _add(self, least: npt.NDArray[Any], most: npt.NDArray[Any]) -> Ints:
        first, self.variables = self.variables, self.variables + len(least)
        self.least.append(np.asarray(least, dtype=np.float64))
        self.most.append(np.asarray(most, dtype=np.float64))
        return np.arange(first, self.variables)

    def _row(
        self,
        variables: Ints,
        lower: float = -np.inf,
        upper: float = np.inf,
        values: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Add ``lower <= values @ variables <= upper``."""
        self.entries.append(
            (np.full(len(variables), len(self.lower)), variables, np.ones(len(variables)) if values is None else values)
        )
        self.lower.append(float(lower))
        self.upper.append(float(upper))
